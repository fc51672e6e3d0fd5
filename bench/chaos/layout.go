package main

import (
	"fmt"
	"hash/fnv"
	"math/bits"
	"strconv"
	"strings"
)

// This file reads the layout of counts in Redis by its documentation. It shares
// no code with the library, so that a mistake of the one is not the other's.

const shards = 16 // the library's default

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
	p := 1
	for 2*p <= n {
		p *= 2
	}
	if i := h % (2 * p); i < n {
		return i
	}
	return h%(2*p) - p
}

// checkpointOffset returns the offset in FINAL EXPIRED OFFSET ORIGIN WATERMARK
// live|ended LOG.
func checkpointOffset(record string) (int64, error) {
	words := strings.SplitN(record, " ", 7)
	if len(words) != 7 {
		return 0, fmt.Errorf("checkpoint %q", record)
	}
	return strconv.ParseInt(words[2], 10, 64)
}

// shardOf returns the shard of a key: its FNV-1a, mixed by MurmurHash3's fmix64.
func shardOf(key string) int {
	f := fnv.New64a()
	f.Write([]byte(key))
	h := f.Sum64()
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return int((h ^ h>>33) % shards)
}
