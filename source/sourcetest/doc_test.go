package sourcetest_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tumblestream/tumble/source/sourcetest"
)

// TestDocs holds the rules against the contract: what a rule says is there word
// for word, and each sentence about sources and partitions is some rule's.
func TestDocs(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "../../source.go", nil, parser.ParseComments)
	require.NoError(t, err)
	text := func(groups []*ast.CommentGroup) string {
		var b strings.Builder
		for _, g := range groups {
			b.WriteString(g.Text() + " ")
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	doc := text(f.Comments)
	var said strings.Builder
	for _, r := range sourcetest.Rules() {
		for _, s := range sentences(r.Doc) {
			require.True(t, strings.Contains(doc, s), "rule %q: package tumble does not say %q", r.Name, s)
		}
		said.WriteString(r.Doc + " ")
	}
	// What the pipeline does, not the source.
	said.WriteString("An error ends the pipeline, unless it wraps ErrUnavailable and Run has been called: then it is asked again. " +
		"A transient error wraps ErrUnavailable and is retried. Any other error is transient and retried with back-off. " +
		"A Committer is a Partition that wants to know how far its events are counted for good, to forget them or to tell others. " +
		"Waits says what holds reading up although the log goes on, in words for who operates it: a quota, an open transaction. \"\" if nothing does. " +
		"Committed reports that every shard holds the counts of all events before offset.")
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.TYPE {
			continue
		}
		if name := g.Specs[0].(*ast.TypeSpec).Name.Name; name != "Source" && name != "Partition" && name != "Committer" && name != "Chunk" {
			continue
		}
		for _, c := range f.Comments {
			if c.Pos() < g.Pos() || c.End() > g.End() {
				continue // not within the type
			}
			for _, s := range sentences(text([]*ast.CommentGroup{c})) {
				require.True(t, strings.Contains(said.String(), s), "no rule checks this sentence: %q", s)
			}
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
