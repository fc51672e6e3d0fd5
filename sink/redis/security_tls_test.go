//go:build servers

package redis_test

import (
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
	"testing"
	"time"

	"github.com/redis/rueidis"
	"github.com/stretchr/testify/require"
)

// certificate writes one for 127.0.0.1, and its key, to files.
func certificate(t testing.TB) (cert, key string, roots *x509.CertPool) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	about := &x509.Certificate{
		SerialNumber: big.NewInt(1), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, about, about, &private.PublicKey, private)
	require.NoError(t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(t, err)
	cert, key = filepath.Join(t.TempDir(), "cert.pem"), filepath.Join(t.TempDir(), "key.pem")
	public := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	require.NoError(t, os.WriteFile(cert, public, 0o600))
	require.NoError(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	roots = x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(public))
	return cert, key, roots
}

// Counts are written and read over TLS, by users of the documented rules.
func TestTLS(t *testing.T) {
	cert, key, roots := certificate(t)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := l.Addr().String()
	_, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	require.NoError(t, l.Close())
	srv := start(t, "--tls-port", port, "--tls-cert-file", cert, "--tls-key-file", key, "--tls-ca-cert-file", cert, "--tls-auth-clients", "no")
	admin := srv.connect(t)
	for _, user := range []string{"counter", "reader"} {
		do(t, admin, documented(t, user)...)
	}
	as := func(user string, settings *tls.Config) (rueidis.Client, error) {
		return rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, Username: user, Password: "SECRET", TLSConfig: settings})
	}
	trusting := &tls.Config{RootCAs: roots}
	counter, err := as("counter", trusting)
	require.NoError(t, err)
	defer counter.Close()
	require.NoError(t, write(t.Context(), counter, "clicks"))
	reader, err := as("reader", trusting)
	require.NoError(t, err)
	defer reader.Close()
	require.NoError(t, read(t.Context(), reader, "clicks"))

	for want, settings := range map[string]*tls.Config{
		"certificate signed by unknown authority": {RootCAs: x509.NewCertPool()},
		"": nil, // the server hangs up on what is no TLS
	} {
		began := time.Now()
		_, err := as("counter", settings)
		require.ErrorContains(t, err, want)
		require.Less(t, time.Since(began), 5*time.Second)
	}
	_, err = rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{addr}, Username: "counter", Password: "wrong", TLSConfig: trusting})
	require.ErrorContains(t, err, "WRONGPASS")
}
