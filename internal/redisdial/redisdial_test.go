package redisdial

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

func TestConnectNamesTheAddress(t *testing.T) {
	silent, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	defer silent.Close()
	closed, err := net.Listen("tcp", "localhost:0")
	require.NoError(t, err)
	require.NoError(t, closed.Close())

	for addr, says := range map[string]string{
		silent.Addr().String(): "no answer",
		stuck(t):               "no answer",
		closed.Addr().String(): "refused",
	} {
		began := time.Now()
		_, err := Connect(t.Context(), rueidis.ClientOption{InitAddress: strings.Split(addr, ",")})
		require.ErrorContains(t, err, "redis "+addr+": ")
		require.ErrorContains(t, err, says)
		require.Less(t, time.Since(began), 5*time.Second)
	}
}

// stuck returns the address of a server that greets, and then hangs.
func stuck(t *testing.T) string {
	t.Helper()
	return serve(t, func(c net.Conn) {
		for s := bufio.NewScanner(c); s.Scan(); {
			switch s.Text() {
			case "HELLO":
				fmt.Fprint(c, "%2\r\n+version\r\n+7.0.0\r\n+proto\r\n:3\r\n")
			case "CLIENT":
				fmt.Fprint(c, "+OK\r\n")
			}
		}
	})
}

// serve returns the address of a server that hangs up when talk returns.
func serve(t *testing.T, talk func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			go func() {
				defer c.Close()
				talk(c)
			}()
		}
	}()
	return l.Addr().String()
}

// certified returns a certificate for one address, and who trusts it.
func certified(t *testing.T, ip string) (tls.Certificate, *x509.CertPool) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.ParseIP(ip)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &private.PublicKey, private)
	require.NoError(t, err)
	leaf, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, roots
}

// handshakes returns the address of a server that hangs up after the handshake,
// if it knows one.
func handshakes(t *testing.T, config *tls.Config) string {
	return serve(t, func(c net.Conn) {
		if config != nil {
			_ = tls.Server(c, config).Handshake()
		}
	})
}

// A server that refuses TLS, or wants it, or wants to see a certificate, is
// named at once, and what it may want.
func TestConnectSaysWhatTLSMayLack(t *testing.T) {
	certificate, roots := certified(t, "127.0.0.1")
	for name, test := range map[string]struct {
		addr, scheme, want string
	}{
		"plain":          {handshakes(t, nil), "rediss", "does it want no TLS, or a certificate of the client?"},
		"TLS":            {handshakes(t, &tls.Config{Certificates: []tls.Certificate{certificate}}), "redis", "does it want TLS, as rediss:// asks for?"},
		"no certificate": {handshakes(t, &tls.Config{Certificates: []tls.Certificate{certificate}, ClientAuth: tls.RequireAnyClientCert}), "rediss", "or a certificate of the client?"},
	} {
		t.Run(name, func(t *testing.T) {
			option, err := Parse(test.scheme + "://" + test.addr)
			require.NoError(t, err)
			if option.TLSConfig != nil {
				option.TLSConfig.RootCAs = roots
			}
			began := time.Now()
			_, err = Connect(t.Context(), option)
			require.ErrorContains(t, err, "redis "+test.addr+": ")
			require.ErrorContains(t, err, test.want)
			require.Less(t, time.Since(began), 5*time.Second)
		})
	}
}

// The nodes of a cluster have certificates of their own names, not of the one
// that the URL begins with.
func TestEveryNodeHasItsName(t *testing.T) {
	certificate, roots := certified(t, "127.0.0.1")
	addr := handshakes(t, &tls.Config{Certificates: []tls.Certificate{certificate}})
	option, err := Parse("rediss://localhost:1?addr=" + addr)
	require.NoError(t, err)
	option.TLSConfig.RootCAs = roots
	option.InitAddress = option.InitAddress[1:]
	_, err = Connect(t.Context(), option)
	require.ErrorContains(t, err, "redis "+addr+": ")
	require.NotContains(t, err.Error(), "failed to verify")
}
