package command

import (
	"reflect"
	"testing"
)

// Each fuzz test: any input gives a value or a *DecodeError, never a panic, and
// a value that is encoded again decodes to itself.

func FuzzDecodeBatch(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeBatch(data)
		if err != nil {
			if !isDecodeError(err) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		again, err := DecodeBatch(got.AppendTo(nil))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("encoded again: %+v, %v\nwas %+v", again, err, got)
		}
		for i := range got.Commands {
			c := &got.Commands[i]
			if c.Size() != len(c.appendTo(nil)) {
				t.Fatalf("Size() = %d of %+v", c.Size(), c)
			}
			_ = c.Validate(DefaultLimits())
		}
	})
}

func FuzzDecodeCommands(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeCommands(data)
		if err != nil {
			if !isDecodeError(err) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		again, err := DecodeCommands(AppendCommands(nil, got))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("encoded again: %+v, %v\nwas %+v", again, err, got)
		}
	})
}

func FuzzDecodeResults(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeResults(data)
		if err != nil {
			if !isDecodeError(err) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		again, err := DecodeResults(AppendResults(nil, got))
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("encoded again: %+v, %v\nwas %+v", again, err, got)
		}
	})
}

func FuzzDecodeInit(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := DecodeInit(data)
		if err != nil {
			if !isDecodeError(err) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			return
		}
		again, err := DecodeInit(got.Encode())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Fatalf("encoded again: %+v, %v\nwas %+v", again, err, got)
		}
	})
}
