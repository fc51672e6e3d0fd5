package sinktest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble/sink/sinktest"
)

// comments returns the comments of a file of package tumble, and by themselves
// those of its types, as running text.
func comments(t *testing.T, file string) (all string, types map[string]string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), "../../"+file, nil, parser.ParseComments)
	require.NoError(t, err)
	text := func(groups ...*ast.CommentGroup) string {
		var b strings.Builder
		for _, g := range groups {
			b.WriteString(g.Text() + " ")
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	types = make(map[string]string)
	for _, d := range f.Decls {
		if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.TYPE {
			groups := []*ast.CommentGroup{g.Doc}
			for _, c := range f.Comments {
				if c.Pos() > g.Pos() && c.End() < g.End() {
					groups = append(groups, c)
				}
			}
			types[g.Specs[0].(*ast.TypeSpec).Name.Name] = text(groups...)
		}
	}
	return text(f.Comments...), types
}

// TestDocs holds the rules against the contract: what a rule says is there word
// for word, and each sentence about sinks, shards and readers, and what these
// are given and give, is some rule's.
func TestDocs(t *testing.T) {
	types := make(map[string]string)
	var contract strings.Builder
	for _, file := range []string{"sink.go", "reader.go", "window.go"} {
		all, of := comments(t, file)
		contract.WriteString(all + " ")
		maps.Copy(types, of)
	}
	var said strings.Builder
	for _, r := range sinktest.Rules() {
		for _, part := range sentences(r.Doc) {
			require.True(t, strings.Contains(contract.String(), part), "rule %q: package tumble does not say %q", r.Name, part)
		}
		said.WriteString(r.Doc + " ")
	}
	for _, name := range []string{"Sink", "Shard", "Reader", "LoadRequest"} {
		require.NotEmpty(t, types[name])
		for _, s := range sentences(types[name]) {
			require.True(t, strings.Contains(said.String(), s), "no rule checks this sentence about %s: %q", name, s)
		}
	}
}

// sentences splits running text after each full stop that ends a sentence.
func sentences(text string) []string {
	var all []string
	for {
		i := strings.Index(text, ". ")
		if i < 0 {
			return append(all, strings.TrimSuffix(strings.TrimSpace(text), "."))
		}
		all = append(all, strings.TrimSpace(text[:i]))
		text = strings.TrimSpace(text[i+2:])
	}
}
