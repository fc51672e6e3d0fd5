package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgconn"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver pgx
	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"

	"github.com/tumblestream/tumble"
)

// A store is the database that windows are exported to: the table finals, and the table
// export with one row, which says what finals holds and how far it came.
type store struct {
	*sql.DB
	name   string // for errors, without a password
	insert func(ctx context.Context, tx *sql.Tx, start string, counts []tumble.Count) error
}

// An export is what a database holds.
type export struct {
	Name   string // of the counts
	Window string
	States string // of the windows when they were written: final or closed
}

func (x export) String() string {
	return fmt.Sprintf("the %s windows (%s) of %s", x.States, x.Window, x.Name)
}

// schema suits both databases. In SQLite the rows stand in their key's order, which is
// the order in which they come.
const schema = `
CREATE TABLE IF NOT EXISTS finals (key TEXT NOT NULL, start TEXT NOT NULL, n BIGINT NOT NULL, PRIMARY KEY (start, key));
CREATE TABLE IF NOT EXISTS export (
	one INTEGER PRIMARY KEY CHECK (one = 1),
	name TEXT NOT NULL, "window" TEXT NOT NULL, states TEXT NOT NULL,
	"cursor" TEXT NOT NULL);`

// answerTime bounds open: the program promises to fail within 5 seconds.
const answerTime = 4 * time.Second

// open connects to the database, and makes the tables if they are missing.
func open(ctx context.Context, where string) (*store, error) {
	s := &store{name: where, insert: insertSQLite}
	driver, dsn, tables := "sqlite", "", strings.ReplaceAll(schema, "BIGINT", "INTEGER")
	if u, err := url.Parse(where); err == nil && (u.Scheme == "postgres" || u.Scheme == "postgresql") {
		driver, dsn, tables = "pgx", where, strings.ReplaceAll(schema, "TEXT", `TEXT COLLATE "C"`)
		s.name, s.insert = u.Redacted(), insertPostgres
	} else {
		// A commit is safe from a kill at once, and from a power cut soon after: rows and
		// cursor go together, so the export then only goes on from a little earlier.
		dsn = (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: where}).EscapedPath(),
			RawQuery: "_txlock=immediate&_pragma=busy_timeout(5000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)"}).String()
	}
	var err error
	if s.DB, err = sql.Open(driver, dsn); err != nil {
		return nil, fmt.Errorf("database %s: %w", s.name, err)
	}
	asked, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	// Twice: of two that make a table at once, one fails.
	if _, err = s.ExecContext(asked, tables); err != nil && asked.Err() == nil {
		_, err = s.ExecContext(asked, tables)
	}
	if err == nil {
		return s, nil
	}
	s.Close()
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case asked.Err() != nil:
		err = fmt.Errorf("no answer within %v", answerTime)
	}
	return nil, fmt.Errorf("database %s: %w", s.name, err)
}

// cursor returns how far the export came. It fails if the database holds another one.
func (s *store) cursor(ctx context.Context, want export) (string, error) {
	if _, err := s.ExecContext(ctx, `INSERT INTO export VALUES (1, $1, $2, $3, '') ON CONFLICT DO NOTHING`, want.Name, want.Window, want.States); err != nil {
		return "", s.judge(err)
	}
	var held export
	var cursor string
	err := s.QueryRowContext(ctx, `SELECT name, "window", states, "cursor" FROM export`).Scan(&held.Name, &held.Window, &held.States, &cursor)
	if err != nil {
		return "", s.judge(err)
	}
	if held != want {
		return "", unmendable{fmt.Errorf("database %s holds %v, not %v: export into another one", s.name, held, want)}
	}
	return cursor, nil
}

// errMoved says that the cursor is not where it was: another export writes as well.
var errMoved = errors.New("another export moved the cursor")

// move moves the cursor past windows that have no rows.
func (s *store) move(ctx context.Context, from, to string) error {
	return s.change(ctx, from, to, func(*sql.Tx) error { return nil })
}

// chunk is how many rows are sent at once.
const chunk = 1000

// write writes a window's rows and moves the cursor past it, both or neither. It returns
// how many rows those are.
func (s *store) write(ctx context.Context, from string, t tumble.Total, rows iter.Seq2[tumble.Count, error]) (n int64, err error) {
	err = s.change(ctx, from, t.Cursor, func(tx *sql.Tx) error {
		counts := make([]tumble.Count, 0, chunk)
		for c, err := range rows {
			if err != nil {
				return err
			}
			if counts = append(counts, c); len(counts) == chunk {
				if err := s.insert(ctx, tx, start(t), counts); err != nil {
					return s.judge(err)
				}
				counts, n = counts[:0], n+chunk
			}
		}
		n += int64(len(counts))
		return s.judge(s.insert(ctx, tx, start(t), counts))
	})
	return n, err
}

// change moves the cursor, and does what more does, in one transaction.
func (s *store) change(ctx context.Context, from, to string, more func(*sql.Tx) error) error {
	tx, err := s.BeginTx(ctx, nil)
	if err != nil {
		return s.judge(err)
	}
	defer tx.Rollback() // of nothing after a commit
	// First, so that of two exports one waits here for the other.
	done, err := tx.ExecContext(ctx, `UPDATE export SET "cursor" = $1 WHERE "cursor" = $2`, to, from)
	if err != nil {
		return s.judge(err)
	}
	if n, err := done.RowsAffected(); err != nil || n != 1 {
		return errors.Join(errMoved, err)
	}
	if err := more(tx); err != nil {
		return err
	}
	return s.judge(tx.Commit())
}

// judge names the database in an error, which is unmendable if it is about what was
// written: a key that the database can't hold, a table of another shape, a right that is
// missing.
func (s *store) judge(err error) error {
	if err == nil {
		return nil
	}
	named := fmt.Errorf("database %s: %w", s.name, err)
	if e := new(pgconn.PgError); errors.As(err, &e) {
		// https://www.postgresql.org/docs/current/errcodes-appendix.html: data, integrity,
		// authorization, and names that do not exist or mean something else.
		switch e.Code[:2] {
		case "22", "23", "28", "42":
			return unmendable{named}
		}
	}
	if e := new(sqlite.Error); errors.As(err, &e) {
		switch e.Code() & 0xff { // https://www.sqlite.org/rescode.html#primary_result_codes_versus_extended_result_codes
		case sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_INTERRUPT:
		default:
			return unmendable{named}
		}
	}
	return named
}

// insertSQLite has one statement prepared: a call in the process costs less than a
// statement with many rows, whose parameters the driver looks up one by one.
func insertSQLite(ctx context.Context, tx *sql.Tx, start string, counts []tumble.Count) error {
	insert, err := tx.PrepareContext(ctx, `INSERT INTO finals (key, start, n) VALUES ($1, $2, $3)`)
	if err != nil {
		return err
	}
	defer insert.Close()
	for _, c := range counts {
		if _, err := insert.ExecContext(ctx, c.Key, start, c.N); err != nil {
			return fmt.Errorf("key %q, window %s: %w", c.Key, start, err)
		}
	}
	return nil
}

func insertPostgres(ctx context.Context, tx *sql.Tx, start string, counts []tumble.Count) error {
	keys, ns := make([]string, len(counts)), make([]int64, len(counts))
	for i, c := range counts {
		if !utf8.ValidString(c.Key) || strings.ContainsRune(c.Key, 0) {
			return unmendable{fmt.Errorf("key %q, window %s: PostgreSQL's text holds no such key", c.Key, start)}
		}
		keys[i], ns[i] = c.Key, c.N
	}
	_, err := tx.ExecContext(ctx, `INSERT INTO finals (key, start, n) SELECT k, $2, n FROM unnest($1::text[], $3::bigint[]) AS counts(k, n)`, keys, start, ns)
	return err
}
