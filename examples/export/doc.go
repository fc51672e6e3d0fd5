// Command export writes the windows of a name into a database as they become final:
// each key's count is one row of the table finals, written exactly once however often
// the program is killed. The cursor that says how far it came stands in the same
// database and moves in the transaction that writes the rows.
//
//	go run ./examples/export -name clickstream -db finals.db
//	go run ./examples/export -name clickstream -db postgres://user:password@host/database
//
// The table is finals(key, start, n): start is RFC 3339 in UTC, so its text sorts by
// time. Several exports of one name into one database may run side by side: one writes,
// and the others go on where it stands.
package main
