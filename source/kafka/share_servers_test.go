//go:build servers

package kafka

import (
	"errors"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/stretchr/testify/require"
)

func TestRejectsOnRealBroker(t *testing.T) {
	c := realCluster(t)
	t.Run("", func(t *testing.T) { runRejectScenarios(t, c) })
}

func TestDeadLettersOnRealBroker(t *testing.T) {
	c := realCluster(t)
	t.Run("", func(t *testing.T) { runLetterScenarios(t, c) })
}

// One who may not write letters is told so when it starts, and may once it has
// the permission: whatever the record, it waits.
func TestDeadLettersNeedPermission(t *testing.T) {
	c := realCluster(t)
	to := c.create(t, 1)
	u := c.newUser(t)
	acl := func(operation string) []string {
		return []string{"--allow-principal", "User:" + u.name, "--operation", operation, "--topic", to}
	}
	c.allow(t, acl("DESCRIBE"))
	secured := c.secured(t, u, to)
	letters := c.letters(t, to, func(cfg *DeadLettersConfig) { cfg.Brokers, cfg.Transport = secured.Brokers, secured.Transport })
	err := letters.Check(t.Context())
	require.ErrorContains(t, err, "the permission Write is needed")
	require.ErrorContains(t, err, to)
	r := Rejected{Topic: "clicks", Offset: 7, Cause: errors.New("bad")}
	require.ErrorIs(t, letters.Write(t.Context(), r), kafkago.TopicAuthorizationFailed)
	c.allow(t, acl("WRITE"))
	require.Eventually(t, func() bool { return letters.Check(t.Context()) == nil }, 10*time.Second, 50*time.Millisecond)
	require.NoError(t, letters.Write(t.Context(), r))
	c.records(t, to, 1)
}

func TestShareOnRealBroker(t *testing.T) {
	c := realCluster(t)
	t.Run("", func(t *testing.T) { runShareScenarios(t, c) })
}
