// Package codecs shows how records that are no JSON become events: protocol buffers and
// Avro, in the frame that clients of a schema registry write. It is a module of its own,
// so that nobody else needs these codecs.
package codecs
