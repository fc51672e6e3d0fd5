package kafka

import (
	"fmt"
	"slices"
)

// A filter knows which transactions of a segment were aborted.
type filter struct {
	aborted []abortedTxn // to come, by first offset
	active  []int64      // producers inside one
}

type abortedTxn struct{ producer, first int64 }

// drops reports whether the batch gives no records to anyone: a marker, or part
// of an aborted transaction.
func (f *filter) drops(b *batch) (bool, error) {
	if !b.txn() {
		return b.marks(), nil
	}
	// Also at a marker: reading may begin there.
	for len(f.aborted) > 0 && f.aborted[0].first < b.next() {
		if !slices.Contains(f.active, f.aborted[0].producer) {
			f.active = append(f.active, f.aborted[0].producer)
		}
		f.aborted = f.aborted[1:]
	}
	if b.marks() {
		abort, err := b.aborts()
		if i := slices.Index(f.active, b.producer); abort && i >= 0 {
			f.active = slices.Delete(f.active, i, i+1)
		}
		return true, err
	}
	return slices.Contains(f.active, b.producer), nil
}

// A batchReader goes through a segment, batch by batch, record by record.
type batchReader struct {
	unpack unpacker
	seg    *segment // nil: none
	rest   []byte   // batches to come
	batch  batch
	walker walker
	inside bool    // of batch
	plain  *buffer // the decompressed batch, nil if it lies in the segment
}

type status int

const (
	atRecord status = iota
	atBatchEnd
	atSegmentEnd
)

func (r *batchReader) begin(s *segment) {
	r.seg, r.rest, r.inside = s, s.data, false
}

// next sets rec to the next record at or after from. Buffers that were read to
// their end go to spent.
func (r *batchReader) next(rec *record, f *filter, from int64, spent *[]*buffer) (st status, err error) {
	for r.seg != nil {
		if !r.inside {
			if len(r.rest) == 0 {
				err = r.seg.err
				r.close(spent)
				return atSegmentEnd, err
			}
			if r.rest, err = r.batch.parse(r.rest); err != nil {
				return atRecord, err
			}
			if err = r.batch.check(); err != nil {
				return atRecord, fmt.Errorf("batch at offset %d: %w", r.batch.base, err)
			}
			drop, err := f.drops(&r.batch)
			if err != nil {
				return atRecord, err
			}
			if drop || r.batch.next() <= from {
				return atBatchEnd, nil
			}
			records := r.batch.records
			if c := r.batch.codec(); c != codecNone {
				if r.plain, err = r.unpack.unpack(c, records); err != nil {
					return atRecord, fmt.Errorf("batch at offset %d: %w", r.batch.base, err)
				}
				records = r.plain.b
			}
			r.walker, r.inside = walk(&r.batch, records), true
		}
		ok, err := r.walker.next(rec)
		if err != nil {
			return atRecord, fmt.Errorf("batch at offset %d: %w", r.batch.base, err)
		}
		if !ok {
			r.leave(spent)
			return atBatchEnd, nil
		}
		if rec.Offset >= from {
			return atRecord, nil
		}
	}
	return atSegmentEnd, nil
}

// leaves reports whether the next batch is of another leader epoch.
func (r *batchReader) leaves(epoch int32) bool {
	next, ok := batchEpoch(r.rest)
	return ok && next != epoch
}

func (r *batchReader) leave(spent *[]*buffer) {
	if r.plain != nil {
		*spent = append(*spent, r.plain)
	}
	r.plain, r.inside = nil, false
}

// close lets go of the segment.
func (r *batchReader) close(spent *[]*buffer) {
	r.leave(spent)
	if r.seg != nil {
		*spent = append(*spent, r.seg.buf)
	}
	r.seg, r.rest = nil, nil
}
