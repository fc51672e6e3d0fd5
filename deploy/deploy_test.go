package deploy

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	// The programs, which the module must know to build them.
	_ "github.com/tumblestream/tumble"
)

// program builds one of the example programs, and returns its path.
func program(t *testing.T, name string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), name)
	out, err := exec.Command("go", "build", "-o", bin, "github.com/tumblestream/tumble/examples/clickstream/"+name).CombinedOutput()
	require.NoError(t, err, string(out))
	return bin
}

// takes wants a program to take the flags as they are, up to the servers, of which
// there are none.
func takes(t *testing.T, bin string, args []string) {
	t.Helper()
	args = append(args, "-brokers=127.0.0.1:1", "-redis=127.0.0.1:1") // of a flag that comes twice the last one counts
	if strings.HasSuffix(bin, "api") {
		args = append(args[:len(args)-2], "-redis=127.0.0.1:1", "-addr=127.0.0.1:0")
	} else {
		args = append(args, "-metrics=127.0.0.1:0")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	exit := new(exec.ExitError)
	require.True(t, errors.As(err, &exit), "%v", err)
	require.Equal(t, 1, exit.ExitCode(), "a wrong flag is 2: %s", out)
	require.Contains(t, string(out), "127.0.0.1:1")
}

// objects decodes the documents of a file, strictly.
func objects(t *testing.T, file string, into ...any) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("kubernetes", file))
	require.NoError(t, err)
	documents := bytes.Split(text, []byte("\n---\n"))
	require.Len(t, documents, len(into))
	for i, d := range documents {
		require.NoError(t, yaml.UnmarshalStrict(d, into[i]), file)
	}
}

// sound checks what the API server would: labels that meet, and probes whose port there
// is and whose path the programs serve.
func sound(t *testing.T, selector map[string]string, pod corev1.PodTemplateSpec) corev1.Container {
	t.Helper()
	require.NotEmpty(t, selector)
	for k, v := range selector {
		require.Equal(t, v, pod.Labels[k])
	}
	require.Len(t, pod.Spec.Containers, 1)
	c := pod.Spec.Containers[0]
	require.Equal(t, "/readyz", c.ReadinessProbe.HTTPGet.Path)
	require.Equal(t, c.Ports[0].Name, c.ReadinessProbe.HTTPGet.Port.StrVal)
	require.Nil(t, c.LivenessProbe, "a store that is away is no reason to restart")
	return c
}

func TestKubernetes(t *testing.T) {
	var consumer appsv1.StatefulSet
	objects(t, "consumer.yaml", &consumer)
	c := sound(t, consumer.Spec.Selector.MatchLabels, consumer.Spec.Template)
	require.Contains(t, c.Args, "-metrics=:9100")
	require.Equal(t, int32(9100), c.Ports[0].ContainerPort)
	require.Equal(t, "9100", consumer.Spec.Template.Annotations["prometheus.io/port"])
	require.Equal(t, "metadata.name", c.Env[0].ValueFrom.FieldRef.FieldPath)
	require.Contains(t, c.Args, "-instance=$("+c.Env[0].Name+")", "Kubernetes fills in a variable of the container")
	takes(t, program(t, c.Command[0]), c.Args)

	var api appsv1.Deployment
	var service corev1.Service
	objects(t, "api.yaml", &api, &service)
	c = sound(t, api.Spec.Selector.MatchLabels, api.Spec.Template)
	require.Contains(t, c.Args, "-addr=:8000")
	require.Equal(t, int32(8000), c.Ports[0].ContainerPort)
	require.Equal(t, api.Spec.Template.Labels, service.Spec.Selector)
	require.Equal(t, c.Ports[0].Name, service.Spec.Ports[0].TargetPort.StrVal)
	takes(t, program(t, c.Command[0]), c.Args)

	// KEDA's types are not at hand: what it refers to must be there.
	var keda struct {
		Kind string
		Spec struct {
			ScaleTargetRef struct{ Kind, Name string }
			Triggers       []struct {
				Type     string
				Metadata map[string]string
			}
		}
	}
	objects(t, "keda.yaml", new(map[string]any))
	text, err := os.ReadFile(filepath.Join("kubernetes", "keda.yaml"))
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &keda))
	require.Equal(t, []string{"ScaledObject", "StatefulSet", consumer.Name}, []string{keda.Kind, keda.Spec.ScaleTargetRef.Kind, keda.Spec.ScaleTargetRef.Name})
	require.Equal(t, "kafka", keda.Spec.Triggers[0].Type)
	require.Contains(t, consumer.Spec.Template.Spec.Containers[0].Args, "-group="+keda.Spec.Triggers[0].Metadata["consumerGroup"])
	require.Contains(t, consumer.Spec.Template.Spec.Containers[0].Args, "-topic="+keda.Spec.Triggers[0].Metadata["topic"])
}

func TestSystemd(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("systemd", "clickstream-consumer.service"))
	require.NoError(t, err)
	_, line, ok := strings.Cut(string(text), "\nExecStart=/usr/local/bin/consumer ")
	require.True(t, ok)
	line, _, _ = strings.Cut(line, "\n")
	takes(t, program(t, "consumer"), strings.Fields(strings.ReplaceAll(line, "%H", "host-1")))
}
