//go:build servers

package redis_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble"
	"github.com/tumblestream/tumble/sink/redis"
)

// An authority signs certificates; who trusts it trusts them.
type authority struct {
	tls.Certificate
	file  string
	roots *x509.CertPool
}

func newAuthority(t testing.TB) *authority {
	a := &authority{roots: x509.NewCertPool()}
	a.Certificate, a.file, _ = certificate(t, nil, time.Now().Add(time.Hour))
	a.roots.AddCert(a.Leaf)
	return a
}

// certificate makes one for 127.0.0.1 that serves both sides, and writes it and
// its key to files. It is an authority's own if by is nil.
func certificate(t testing.TB, by *authority, expires time.Time) (c tls.Certificate, cert, key string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	about := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: expires,
		IsCA: by == nil, BasicConstraintsValid: true,
	}
	about.Subject.CommonName = "authority" // names tell who has signed whom
	parent, signer := about, any(private)
	if by != nil {
		about.Subject.CommonName = "member"
		parent, signer = by.Leaf, by.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, about, parent, &private.PublicKey, signer)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	require.NoError(t, os.WriteFile(cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	c, err = tls.LoadX509KeyPair(cert, key)
	require.NoError(t, err)
	return c, cert, key
}

// trusting returns the settings of who trusts a and shows the certificate that
// shown returns, if any. They are asked for at every connection, and it is shown
// also to who does not accept it.
func (a *authority) trusting(shown func() *tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.roots, GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if shown != nil {
			return shown(), nil
		}
		return new(tls.Certificate), nil
	}}
}

// member returns the settings of who has a certificate of a.
func (a *authority) member(t testing.TB) *tls.Config {
	c, _, _ := certificate(t, a, time.Now().Add(time.Hour))
	return a.trusting(func() *tls.Certificate { return &c })
}

// start starts a server that speaks nothing but TLS, with a certificate of a.
func (a *authority) start(t testing.TB, args ...string) *server {
	_, cert, key := certificate(t, a, time.Now().Add(time.Hour))
	settings := a.member(t)
	dial := func(addr string) (net.Conn, error) { return tls.Dial("tcp", addr, settings) }
	return launch(t, "--tls-port", dial, append([]string{
		"--port", "0", "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", a.file,
	}, args...)...)
}

// over connects to a server by TLS.
func (s *server) over(settings *tls.Config, user string) (rueidis.Client, error) {
	o := rueidis.ClientOption{InitAddress: []string{s.addr}, TLSConfig: settings}
	if user != "" {
		o.Username, o.Password = user, "SECRET"
	}
	return rueidis.NewClient(o)
}

// worksOver has users of the documented rules write and read counts over TLS.
func (s *server) worksOver(t testing.TB, settings *tls.Config) {
	admin, err := s.over(settings, "")
	require.NoError(t, err)
	defer admin.Close()
	for _, user := range []string{"counter", "reader"} {
		do(t, admin, documented(t, user)...)
	}
	counter, err := s.over(settings, "counter")
	require.NoError(t, err)
	defer counter.Close()
	require.NoError(t, write(t.Context(), counter, "clicks"))
	reader, err := s.over(settings, "reader")
	require.NoError(t, err)
	defer reader.Close()
	require.NoError(t, read(t.Context(), reader, "clicks"))
}

// hungUp is how a refused client learns of it at times: the server says why and
// closes the connection, on which the client's first command is then lost, and
// with it what was not yet read.
var hungUp = regexp.MustCompile(`EOF|connection reset by peer|broken pipe`)

// refusesTLS wants an error soon of who connects so, which says this if the
// server can tell.
func (s *server) refusesTLS(t testing.TB, settings *tls.Config, want string) {
	t.Helper()
	began := time.Now()
	client, err := s.over(settings, "")
	if err == nil {
		client.Close()
	}
	require.Error(t, err)
	require.True(t, strings.Contains(err.Error(), want) || hungUp.MatchString(err.Error()), "%v", err)
	require.Less(t, time.Since(began), 5*time.Second)
}

// Counts are written and read over TLS, by users of the documented rules.
func TestTLS(t *testing.T) {
	a := newAuthority(t)
	srv := a.start(t, "--tls-auth-clients", "no")
	srv.worksOver(t, a.trusting(nil))
	_, err := srv.over(&tls.Config{RootCAs: x509.NewCertPool()}, "")
	require.ErrorContains(t, err, "certificate signed by unknown authority")
	srv.refusesTLS(t, nil, "EOF") // the server hangs up on what is no TLS
	_, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{srv.addr}, Username: "counter", Password: "wrong", TLSConfig: a.trusting(nil)})
	require.ErrorContains(t, err, "WRONGPASS")
}

// The same where the server wants a certificate of the client as well.
func TestMutualTLS(t *testing.T) {
	a := newAuthority(t)
	srv := a.start(t, "--tls-auth-clients", "yes")
	srv.worksOver(t, a.member(t))
	expired, _, _ := certificate(t, a, time.Now().Add(-time.Minute))
	srv.refusesTLS(t, a.trusting(nil), "certificate required")
	srv.refusesTLS(t, a.trusting(func() *tls.Certificate { return &newAuthority(t).Certificate }), "unknown certificate authority")
	srv.refusesTLS(t, a.trusting(func() *tls.Certificate { return &expired }), "expired certificate")

	// A certificate that has run out when the client connects anew: the sink
	// says what is wrong, and where.
	mine, _, _ := certificate(t, a, time.Now().Add(time.Hour))
	var shown atomic.Pointer[tls.Certificate]
	shown.Store(&mine)
	client, err := srv.over(a.trusting(shown.Load), "")
	require.NoError(t, err)
	defer client.Close()
	s := newSink(t, redis.Config{Client: client, Name: "clicks", Shards: 1})
	sh := open(t, s, tumble.Definition{Window: minutes.Window, Retention: time.Minute})[0]
	shown.Store(&expired)
	do(t, client, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "no")
	for name, call := range map[string]func(context.Context) error{
		"load":  func(ctx context.Context) error { _, err := sh.Load(ctx, tumble.LoadRequest{}); return err },
		"count": func(ctx context.Context) error { _, err := s.Count(ctx, "x", noon); return err },
		"open":  func(ctx context.Context) error { _, err := s.Open(ctx, minutes); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := call(ctx)
		t.Log(name, err)
		require.ErrorContains(t, err, srv.addr, name)
	}
	shown.Store(&mine) // renewed
	require.Eventually(t, func() bool { _, err := sh.Load(t.Context(), tumble.LoadRequest{}); return err == nil }, 5*time.Second, 10*time.Millisecond)
}

// A cluster of three masters that speak TLS with each other and with clients,
// who find a slot that has moved.
func TestTLSInCluster(t *testing.T) {
	a := newAuthority(t)
	var nodes []*server
	var addrs []string
	for range 3 {
		node := a.start(t, "--tls-auth-clients", "yes", "--tls-cluster", "yes", "--cluster-enabled", "yes")
		nodes, addrs = append(nodes, node), append(addrs, node.addr)
	}
	_, cert, key := certificate(t, a, time.Now().Add(time.Hour))
	makeCluster(t, addrs, "--tls", "--cert", cert, "--key", key, "--cacert", a.file)
	settings := a.member(t)
	connect := func(user string) rueidis.Client {
		o := rueidis.ClientOption{InitAddress: addrs[:1], TLSConfig: settings}
		if user != "" {
			o.Username, o.Password = user, "SECRET"
		}
		client, err := rueidis.NewClient(o)
		require.NoError(t, err)
		t.Cleanup(client.Close)
		return client
	}
	admin := connect("")
	require.Len(t, admin.Nodes(), 3)
	for _, node := range admin.Nodes() {
		for _, user := range []string{"counter", "reader"} {
			do(t, node, append(documented(t, user), "+cluster|slots", "+asking")...)
		}
	}
	counter, reader := connect("counter"), connect("reader")

	// The slot of the first shard gets another master, which the clients learn
	// from the answer of the one that had it.
	const tag = "{460}"
	slot, err := do(t, admin, "CLUSTER", "KEYSLOT", tag).AsInt64()
	require.NoError(t, err)
	owner := slices.IndexFunc(addrs, func(addr string) bool {
		node := admin.Nodes()[addr]
		return rueidis.IsRedisNil(node.Do(t.Context(), node.B().Get().Key(tag).Build()).Error())
	})
	heir := addrs[(owner+1)%3]
	id, err := do(t, admin.Nodes()[heir], "CLUSTER", "MYID").ToString()
	require.NoError(t, err)
	for i := range addrs { // first the heir
		node := admin.Nodes()[addrs[(owner+1+i)%3]]
		do(t, node, "CLUSTER", "SETSLOT", strconv.FormatInt(slot, 10), "NODE", id)
	}
	_, err = newSink(t, redis.Config{Client: reader, Name: "clicks"}).Definition(t.Context())
	require.ErrorIs(t, err, tumble.ErrNoDefinition)

	shards := open(t, newSink(t, redis.Config{Client: counter, Name: "clicks"}), minutes)
	load(t, shards, 1000, noon, registerAll(t, shards, "p/0"))
	for addr, node := range admin.Nodes() {
		n, err := do(t, node, "DBSIZE").AsInt64()
		require.NoError(t, err)
		require.Positive(t, n, "%s holds shards", addr)
	}
	n, err := do(t, admin.Nodes()[heir], "EXISTS", "clicks:"+tag).AsInt64()
	require.NoError(t, err)
	require.EqualValues(t, 1, n)
	want := make(map[string]int64)
	for k := range 1000 {
		want["user-"+strconv.Itoa(k)] = 1 + int64(k%9)
	}
	requireWindow(t, newSink(t, redis.Config{Client: reader, Name: "clicks"}), noon, want)

	for _, node := range nodes {
		node.refusesTLS(t, a.trusting(nil), "certificate required")
		node.refusesTLS(t, nil, "EOF")
	}
}
