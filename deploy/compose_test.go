package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/stretchr/testify/require"
	"sigs.k8s.io/yaml"
)

func compose(t *testing.T) *types.Project {
	options, err := cli.NewProjectOptions([]string{"../compose.yaml"}, cli.WithName("tumble"))
	require.NoError(t, err)
	project, err := options.LoadProject(t.Context())
	require.NoError(t, err)
	return project
}

// The services of compose.yaml are where the programs and the tests look for them, and
// the files that they are given are there.
func TestCompose(t *testing.T) {
	project := compose(t)
	published := map[string]string{}
	for name, service := range project.Services {
		require.Regexp(t, `^[a-z/]+:v?\d`, service.Image, "another version tomorrow is another service")
		for _, port := range service.Ports {
			require.Equal(t, "127.0.0.1", port.HostIP, "nobody else is asked in")
			published[name] = port.Published
		}
		for _, volume := range service.Volumes {
			require.True(t, volume.ReadOnly, volume.Source)
			info, err := os.Stat(volume.Source)
			require.NoError(t, err)
			require.True(t, info.Mode().IsRegular(), volume.Source)
		}
	}
	require.Equal(t, map[string]string{"kafka": "9092", "redis": "6379", "prometheus": "9090", "grafana": "3000"}, published)
	require.Contains(t, strings.Join(project.Services["redis"].Command, " "), "--maxmemory-policy noeviction")
}

// inside returns where a file of the repository stands in a service.
func inside(t *testing.T, project *types.Project, service, file string) string {
	for _, volume := range project.Services[service].Volumes {
		if strings.HasSuffix(volume.Source, "/"+file) {
			return volume.Target
		}
	}
	require.Fail(t, "not mounted", "%s in %s", file, service)
	return ""
}

// Grafana finds its dashboard and Prometheus, and Prometheus its rules.
func TestComposeFits(t *testing.T) {
	project := compose(t)
	decode := func(file string, into any) {
		text, err := os.ReadFile(filepath.Join("compose", file))
		require.NoError(t, err)
		require.NoError(t, yaml.Unmarshal(text, into))
	}
	var sources struct {
		Datasources []struct{ URL, Type string }
	}
	decode("datasource.yaml", &sources)
	require.Len(t, sources.Datasources, 1)
	require.Equal(t, "http://prometheus:9090", sources.Datasources[0].URL)
	require.Contains(t, project.Services, "prometheus")

	var boards struct {
		Providers []struct {
			Options struct{ Path string }
		}
	}
	decode("dashboards.yaml", &boards)
	require.Len(t, boards.Providers, 1)
	require.Equal(t, boards.Providers[0].Options.Path, filepath.Dir(inside(t, project, "grafana", "prom/dashboard.json")))
	home := project.Services["grafana"].Environment["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
	require.Equal(t, inside(t, project, "grafana", "prom/dashboard.json"), *home)

	var config struct {
		RuleFiles     []string `json:"rule_files"`
		ScrapeConfigs []struct {
			StaticConfigs []struct{ Targets []string } `json:"static_configs"`
		} `json:"scrape_configs"`
	}
	decode("prometheus.yaml", &config)
	require.Equal(t, []string{inside(t, project, "prometheus", "prom/alerts.yaml")}, config.RuleFiles)
	require.Equal(t, "/etc/prometheus/prometheus.yml", inside(t, project, "prometheus", "compose/prometheus.yaml"), "where it looks by itself")
	var targets []string
	for _, s := range config.ScrapeConfigs {
		targets = append(targets, s.StaticConfigs[0].Targets...)
	}
	require.Equal(t, []string{"host.docker.internal:9100", "host.docker.internal:9101", "host.docker.internal:8000"}, targets)
	require.Contains(t, project.Services["prometheus"].ExtraHosts, "host.docker.internal")
	text, err := os.ReadFile("../compose.yaml")
	require.NoError(t, err)
	for _, target := range targets {
		// Without a host: what listens on localhost cannot be reached from a container.
		_, port, _ := strings.Cut(target, ":")
		require.Regexp(t, regexp.MustCompile(`#\tgo run ./examples/clickstream/(consumer -metrics|api -addr) :`+port+`\n`), string(text))
	}
}
