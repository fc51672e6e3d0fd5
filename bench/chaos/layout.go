package main

import (
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math"
	"math/bits"
	"strconv"
	"strings"
)

// This file reads the layout of counts in Redis by its documentation. It shares
// no code with the library, so that a mistake of the one is not the other's.

// shards is how many a Redis Cluster has by default, and serverShards a single server.
const (
	shards       = 16
	serverShards = 4
)

// tags are the hash tags of the shards: of shard i the smallest decimal number
// whose slot, divided by 64, is i with its 8 bits reversed.
var tags, slots = func() (tags [shards]string, slots [shards]int) {
	for i := range shards {
		for n := 0; ; n++ {
			tag := strconv.Itoa(n)
			if s := int(crc16(tag)) % 16384; s/64 == int(bits.Reverse8(uint8(i))) {
				tags[i], slots[i] = tag, s
				break
			}
		}
	}
	return tags, slots
}()

// crc16 is CRC-16/XMODEM.
func crc16(s string) (crc uint16) {
	for _, b := range []byte(s) {
		crc ^= uint16(b) << 8
		for range 8 {
			if crc&0x8000 != 0 {
				crc = crc<<1 ^ 0x1021
			} else {
				crc <<= 1
			}
		}
	}
	return crc
}

func baseKey(name string, shard int) string { return name + ":{" + tags[shard] + "}" }

// keyOf returns the key whose count a field holds.
func keyOf(field string) string { return strings.TrimPrefix(field, "\x00") }

// bucketOf returns which of n buckets a field is in.
func bucketOf(field string, n int) int {
	h := 0
	for _, b := range []byte(field) {
		h = (h + int(b)) * 1664525 % (1 << 32)
	}
	swapped := func(h int) int { return h>>16 | h<<16%(1<<32) }
	h = swapped(swapped(h) * 1664525 % (1 << 32))
	if len(field) > 64 {
		sum := sha1.Sum([]byte(field))
		h = int(binary.BigEndian.Uint32(sum[:]))
	}
	p := 1
	for 2*p <= n {
		p *= 2
	}
	if i := h % (2 * p); i < n {
		return i
	}
	return h%(2*p) - p
}

// A record is a checkpoint as a shard holds it.
type record struct {
	closed    int64  // windows that end at or before it are closed by this watermark; noMark: none
	writer    string // who moved it there
	offset    int64
	watermark string // in nanoseconds; "-": none
	state     string // live or ended
}

// noMark is before the end of every window.
const noMark = math.MinInt64

// parseMark reads milliseconds, or "-" for none.
func parseMark(text string) (int64, error) {
	if text == "-" {
		return noMark, nil
	}
	return strconv.ParseInt(text, 10, 64)
}

// parseRecord reads CLOSED WRITER OFFSET ORIGIN EPOCH WATERMARK live|ended LOG.
func parseRecord(text string) (r record, err error) {
	words := strings.SplitN(text, " ", 8)
	if len(words) != 8 || words[6] != "live" && words[6] != "ended" {
		return r, fmt.Errorf("checkpoint %q", text)
	}
	r.writer, r.watermark, r.state = words[1], words[5], words[6]
	if r.closed, err = parseMark(words[0]); err == nil {
		r.offset, err = strconv.ParseInt(words[2], 10, 64)
	}
	return r, err
}

// member returns what stands for the partition in the sorted set of the live or
// the ended ones.
func (r record) member(partition string) (string, error) {
	if r.watermark == "-" {
		return "- " + partition, nil
	}
	ns, err := strconv.ParseInt(r.watermark, 10, 64)
	return fmt.Sprintf("%016x %s", uint64(ns)+1<<63, partition), err
}

// A published mark is what a shard tells readers of all its windows.
type published struct {
	closed, floor int64 // windows that end at or before them are closed, and past retention; noMark: none
	term          string
}

// parsePublished reads CLOSED TERM SHARDS ID FLOOR and the floors of roll-ups, or ""
// where nothing was said yet.
func parsePublished(text string) (published, error) {
	p := published{closed: noMark, floor: noMark, term: "-"}
	if text == "" {
		return p, nil
	}
	words := strings.Fields(text)
	if len(words) < 5 {
		return p, fmt.Errorf("finality %q", text)
	}
	p.term = words[1]
	var err error
	if p.closed, err = parseMark(words[0]); err == nil {
		p.floor, err = parseMark(words[4])
	}
	return p, err
}

// shardAmong returns which of n shards a key belongs to: its FNV-1a, mixed by
// MurmurHash3's fmix64.
func shardAmong(key string, n int) int {
	f := fnv.New64a()
	f.Write([]byte(key))
	h := f.Sum64()
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return int((h ^ h>>33) % uint64(n))
}
