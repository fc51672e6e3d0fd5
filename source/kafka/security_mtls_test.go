//go:build servers

package kafka

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// issue makes a client's certificate, signed by an authority.
func issue(t testing.TB, name string, expires time.Time, authority tls.Certificate) tls.Certificate {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	about := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: expires,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	by := authority.Leaf
	if by == nil { // its own
		by, authority.PrivateKey = about, private
	}
	der, err := x509.CreateCertificate(rand.Reader, about, by, &private.PublicKey, authority.PrivateKey)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}

// A broker that wants to see a certificate takes the user's name from it. One
// with the documented permissions counts; another is told what it lacks.
func TestMutualTLS(t *testing.T) {
	c := realCluster(t)
	addr := need(t, "TUMBLE_KAFKA_MTLS")
	authority, err := tls.LoadX509KeyPair(need(t, "TUMBLE_KAFKA_CA"), need(t, "TUMBLE_KAFKA_CA_KEY"))
	require.NoError(t, err)
	topic, group := c.create(t, 2), newTopic()
	want := numbered("", 1000)
	produce(t, c.client(t), topic, 1, want...)
	config := func(certificates ...tls.Certificate) Config {
		tr := transport(t, topic)
		tr.TLS = trusted(t)
		// Not Certificates, of which a client sends none if the server does not
		// name its authority.
		if len(certificates) > 0 {
			tr.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &certificates[0], nil }
		}
		cfg := c.config(topic)
		cfg.Brokers, cfg.Transport, cfg.Group, cfg.SessionTimeout = []string{addr}, tr, group, 6*time.Second
		return cfg
	}
	soon := time.Now().Add(time.Hour)
	name := newTopic()
	u := user{name: "CN=" + name}
	for _, command := range c.documented(t, u, topic, group) {
		c.allow(t, command)
	}
	require.Equal(t, want, whole(t, config(issue(t, name, soon, authority))).keys())

	for name, test := range map[string]struct {
		cfg  Config
		want string
	}{
		"no certificate":       {config(), "a certificate of the client"},
		"of another authority": {config(issue(t, name, soon, tls.Certificate{})), "a certificate of the client"},
		"expired":              {config(issue(t, name, time.Now().Add(-time.Minute), authority)), "a certificate of the client"},
		"of another user":      {config(issue(t, name+"x", soon, authority)), "Topic Authorization Failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			took, err := refused(t, test.cfg)
			t.Log(took, err)
			require.ErrorContains(t, err, test.want)
			require.Less(t, took, 5*time.Second)
			if test.want != "Topic Authorization Failed" { // which comes over a connection that stands
				require.ErrorContains(t, err, addr)
			}
		})
	}
}
