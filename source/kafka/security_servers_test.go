//go:build servers

package kafka

import (
	"context"
	"crypto/pbkdf2"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	kafkasasl "github.com/segmentio/kafka-go/sasl"
	"github.com/segmentio/kafka-go/sasl/plain"
	"github.com/stretchr/testify/require"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/scram"

	"github.com/tumblestream/tumble"
)

// scramLogin is SCRAM-SHA-512 for kafka-go's Transport, by another client's
// implementation, which needs no more packages.
type scramLogin struct{ user, password string }

func (l scramLogin) Name() string { return "SCRAM-SHA-512" }

func (l scramLogin) Start(ctx context.Context) (kafkasasl.StateMachine, []byte, error) {
	session, first, err := scram.Auth{User: l.user, Pass: l.password}.AsSha512Mechanism().Authenticate(ctx, "")
	return scramSession{session}, first, err
}

type scramSession struct{ sasl.Session }

func (s scramSession) Next(_ context.Context, challenge []byte) (bool, []byte, error) {
	return s.Challenge(challenge)
}

// trusted returns the TLS settings of who trusts the broker's certificate.
func trusted(t testing.TB) *tls.Config {
	pem, err := os.ReadFile(need(t, "TUMBLE_KAFKA_CA"))
	require.NoError(t, err)
	roots := x509.NewCertPool()
	require.True(t, roots.AppendCertsFromPEM(pem))
	return &tls.Config{RootCAs: roots}
}

// A user is one who logs in with a password over TLS.
type user struct{ name, password string }

// newUser makes a user who may do nothing yet.
func (c cluster) newUser(t testing.TB) user {
	u := user{newTopic(), "secret"}
	req := kmsg.NewPtrAlterUserSCRAMCredentialsRequest()
	const sha512Mechanism, iterations = 2, 4096
	salt := []byte(u.name)
	salted, err := pbkdf2.Key(sha512.New, u.password, salt, iterations, sha512.Size)
	require.NoError(t, err)
	req.Upsertions = []kmsg.AlterUserSCRAMCredentialsRequestUpsertion{{
		Name: u.name, Mechanism: sha512Mechanism, Iterations: iterations, Salt: salt, SaltedPassword: salted,
	}}
	cl := c.client(t)
	res, err := req.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	require.Zero(t, res.Results[0].ErrorCode)
	require.Eventually(t, func() bool { // the broker learns it from the controller
		req := kmsg.NewPtrDescribeUserSCRAMCredentialsRequest()
		req.Users = []kmsg.DescribeUserSCRAMCredentialsRequestUser{{Name: u.name}}
		res, err := req.RequestWith(t.Context(), cl)
		return err == nil && len(res.Results) == 1 && res.Results[0].ErrorCode == 0
	}, 10*time.Second, 10*time.Millisecond)
	return u
}

// secured is c's config for a user, at the address that wants a password.
func (c cluster) secured(t testing.TB, u user, topic string) Config {
	cfg := c.config(topic)
	cfg.Brokers = []string{need(t, "TUMBLE_KAFKA_SASL")}
	tr := transport(t, topic)
	tr.TLS, tr.SASL = trusted(t), scramLogin{u.name, u.password}
	cfg.Transport = tr
	return cfg
}

// documented returns the commands of the package documentation that give a
// user what it needs, with these names.
func (c cluster) documented(t testing.TB, u user, topic, group string) (commands [][]string) {
	source, err := os.ReadFile("doc.go")
	require.NoError(t, err)
	for line := range strings.Lines(string(source)) {
		command, ok := strings.CutPrefix(strings.TrimSpace(line), "//\tkafka-acls ")
		if !ok {
			continue
		}
		words := strings.Fields(command)
		for i, w := range words {
			switch w {
			case "HOST:9092":
				words[i] = c.brokers[0]
			case "User:counter":
				words[i] = "User:" + u.name
			case "clicks":
				words[i] = topic
			case "click-counts":
				words[i] = group
			}
		}
		commands = append(commands, words)
	}
	require.NotEmpty(t, commands)
	return commands
}

// option returns what follows a flag, "" if it is not there.
func option(command []string, flag string) string {
	if i := slices.Index(command, flag); i >= 0 {
		return command[i+1]
	}
	return ""
}

// allow does what kafka-acls would do for one command, in less time.
func (c cluster) allow(t testing.TB, command []string) {
	req := kmsg.NewPtrCreateACLsRequest()
	acl := kmsg.CreateACLsRequestCreation{
		Principal: option(command, "--allow-principal"), Host: "*", PermissionType: kmsg.ACLPermissionTypeAllow,
		ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral, ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: option(command, "--topic"),
	}
	if acl.ResourceName == "" {
		acl.ResourceType, acl.ResourceName = kmsg.ACLResourceTypeGroup, option(command, "--group")
	}
	var err error
	acl.Operation, err = kmsg.ParseACLOperation(option(command, "--operation"))
	require.NoError(t, err)
	req.Creations = append(req.Creations, acl)
	cl := c.client(t)
	res, err := req.RequestWith(t.Context(), cl)
	require.NoError(t, err)
	require.Zero(t, res.Results[0].ErrorCode, "%v", command)
	require.Eventually(t, func() bool { // the broker learns it from the controller
		req := kmsg.NewPtrDescribeACLsRequest()
		req.ResourceType, req.ResourceName, req.ResourcePatternType = acl.ResourceType, &acl.ResourceName, acl.ResourcePatternType
		req.Principal, req.Operation, req.PermissionType = &acl.Principal, acl.Operation, acl.PermissionType
		res, err := req.RequestWith(t.Context(), cl)
		return err == nil && res.ErrorCode == 0 && len(res.Resources) == 1
	}, 10*time.Second, 10*time.Millisecond)
}

// forbid takes back what allow gave.
func (c cluster) forbid(t testing.TB, command []string) {
	req := kmsg.NewPtrDeleteACLsRequest()
	topic, principal := option(command, "--topic"), option(command, "--allow-principal")
	operation, err := kmsg.ParseACLOperation(option(command, "--operation"))
	require.NoError(t, err)
	req.Filters = []kmsg.DeleteACLsRequestFilter{{
		ResourceType: kmsg.ACLResourceTypeTopic, ResourceName: &topic, ResourcePatternType: kmsg.ACLResourcePatternTypeLiteral,
		Principal: &principal, Operation: operation, PermissionType: kmsg.ACLPermissionTypeAllow,
	}}
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	require.Len(t, res.Results[0].MatchingACLs, 1)
}

// refused runs a Source until it says what is wrong, as a pipeline does, and
// returns how long it took, and that.
func refused(t testing.TB, cfg Config) (time.Duration, error) {
	s, err := New(cfg)
	require.NoError(t, err)
	begin := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	start, err := s.Partitions(ctx, nil)
	if err == nil {
		tl := &tail{next: map[string]int64{}, caught: map[string]bool{}}
		err = s.Run(ctx, func(ctx context.Context, p tumble.Partition) error {
			return tl.consume(ctx, p, start[p.ID()])
		})
		require.Empty(t, tl.keys())
	}
	require.Error(t, err)
	return time.Since(begin), err
}

// committed returns the offsets that a group shows.
func (c cluster) committed(t testing.TB, group, topic string, partitions ...int32) (offsets []int64) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.Group = group
	req.Topics = []kmsg.OffsetFetchRequestTopic{{Topic: topic, Partitions: partitions}}
	res, err := req.RequestWith(t.Context(), c.client(t))
	require.NoError(t, err)
	for _, p := range res.Topics[0].Partitions {
		require.Zero(t, p.ErrorCode)
		offsets = append(offsets, p.Offset)
	}
	return offsets
}

func TestTLS(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 2)
	produce(t, c.client(t), topic, 1, numbered("", 1000)...)
	cfg := c.config(topic)
	cfg.Brokers = []string{need(t, "TUMBLE_KAFKA_TLS")}
	tr := transport(t, topic)
	tr.TLS = trusted(t)
	cfg.Transport = tr
	require.Equal(t, numbered("", 1000), whole(t, cfg).keys())
}

// A user who has the documented permissions, given by the documented commands,
// and no others, counts in a group, over TLS.
func TestDocumentedPermissions(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 2, "cleanup.policy", "compact")
	cl := c.client(t)
	var want []string
	for i, v := range numbered("", 20) {
		require.NoError(t, cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: int32(i / 10), Key: []byte(v), Value: []byte(v)}).FirstErr())
		want = append(want, v)
	}
	u, group := c.newUser(t), newTopic()
	for _, command := range c.documented(t, u, topic, group) {
		args := append([]string{"-Xmx64m", "-XX:TieredStopAtLevel=1", "-cp", jars(t), "org.apache.kafka.tools.AclCommand"}, command...)
		out, err := exec.CommandContext(t.Context(), "java", args...).CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	cfg := c.secured(t, u, topic)
	cfg.Group, cfg.SessionTimeout = group, 6*time.Second
	var log strings.Builder
	cfg.Logger = loggerTo(&log)
	tl := follow(t, cfg, nil)
	tl.await(t, len(want))
	tl.stop(t)
	require.Equal(t, want, tl.keys())
	require.Equal(t, []int64{10, 10}, c.committed(t, group, topic, 0, 1))
	require.Contains(t, log.String(), "the topic is compacted")
	require.NotContains(t, log.String(), "Authorization")
}

// With one permission missing, or all, a Source says so at once. The last of
// those that are documented is for comfort.
func TestMissingPermission(t *testing.T) {
	c := realCluster(t)
	topic, group := c.create(t, 2, "cleanup.policy", "compact"), newTopic()
	require.NoError(t, c.client(t).ProduceSync(t.Context(), &kgo.Record{Topic: topic, Key: []byte("k"), Value: []byte("v")}).FirstErr())
	const none = "none"
	what := map[string]func(error){
		"Read topic": func(err error) {
			require.ErrorContains(t, err, "Topic Authorization Failed")
			require.ErrorContains(t, err, topic)
		},
		"Read group": func(err error) {
			require.ErrorContains(t, err, "Group Authorization Failed")
			require.ErrorContains(t, err, "the permission Read on the group is needed")
			require.ErrorContains(t, err, group)
		},
		"DescribeConfigs topic": nil,
	}
	what[none] = what["Read topic"]
	for missing, check := range what {
		t.Run(missing, func(t *testing.T) {
			t.Parallel()
			u := c.newUser(t)
			left := 0
			for _, command := range c.documented(t, u, topic, group) {
				kind := "topic"
				if option(command, "--group") != "" {
					kind = "group"
				}
				if missing != none && option(command, "--operation")+" "+kind != missing {
					c.allow(t, command)
					left++
				}
			}
			require.True(t, missing == none || left == len(what)-2)
			cfg := c.secured(t, u, topic)
			cfg.Group, cfg.SessionTimeout = group, 6*time.Second
			if check == nil {
				require.Equal(t, []string{"v"}, whole(t, cfg).keys())
				return
			}
			took, err := refused(t, cfg)
			t.Log(took, err)
			check(err)
			require.Less(t, took, 5*time.Second)
		})
	}
}

// One who may see the topic and not read it is told so at the start. If the
// permission is taken away later, Fetch says so, and reads on once it is back:
// an error that a person can mend while the process runs.
func TestDescribeOnly(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 2)
	produce(t, c.client(t), topic, 0, "v")
	u := c.newUser(t)
	acl := func(operation string) []string {
		return []string{"--allow-principal", "User:" + u.name, "--operation", operation, "--topic", topic}
	}
	c.allow(t, acl("DESCRIBE"))
	took, err := refused(t, c.secured(t, u, topic))
	require.ErrorContains(t, err, "the permission Read is needed")
	require.ErrorContains(t, err, topic)
	require.Less(t, took, 5*time.Second)

	c.allow(t, acl("READ"))
	tl := follow(t, c.secured(t, u, topic), nil)
	tl.await(t, 1)
	c.forbid(t, acl("READ"))
	require.Eventually(t, func() bool { return tl.trouble() != nil }, 5*time.Second, 10*time.Millisecond)
	require.ErrorContains(t, tl.trouble(), "Topic Authorization Failed")
	require.ErrorContains(t, tl.trouble(), topic)
	produce(t, c.client(t), topic, 0, "w")
	c.allow(t, acl("READ"))
	tl.await(t, 2)
}

func TestRefusedLogin(t *testing.T) {
	c := realCluster(t)
	topic := c.create(t, 1)
	u := c.newUser(t)
	tls0, sasl0, plain0 := need(t, "TUMBLE_KAFKA_TLS"), need(t, "TUMBLE_KAFKA_SASL"), c.brokers[0]
	for name, test := range map[string]struct {
		addr  string
		tls   *tls.Config
		login kafkasasl.Mechanism
		want  string
	}{
		"wrong password":    {sasl0, trusted(t), scramLogin{u.name, "wrong"}, "SASL"},
		"wrong user":        {sasl0, trusted(t), scramLogin{"nobody", u.password}, "SASL"},
		"no password":       {sasl0, trusted(t), nil, "SASL"},
		"another mechanism": {sasl0, trusted(t), plain.Mechanism{Username: u.name, Password: u.password}, "SASL"},
		"not trusted":       {tls0, &tls.Config{RootCAs: x509.NewCertPool()}, nil, "certificate"},
		"TLS missing":       {tls0, nil, nil, "TLS"},
		"TLS where none is": {plain0, trusted(t), nil, "TLS"},
		"SASL where none":   {tls0, trusted(t), scramLogin{u.name, u.password}, "SASL"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := transport(t, topic)
			tr.TLS, tr.SASL = test.tls, test.login
			cfg := c.config(topic)
			cfg.Brokers, cfg.Transport = []string{test.addr}, tr
			took, err := refused(t, cfg)
			t.Log(took, err)
			require.ErrorContains(t, err, test.addr)
			require.ErrorContains(t, err, test.want)
			require.Less(t, took, 5*time.Second)
		})
	}
}
