package command

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"
)

// What a slot's rows look like in a log for ever, and that they come out as they went in.
func TestLoadRows(t *testing.T) {
	rows := []Row{
		{Slot: 258, Key: b("plain"), Value: b("v")},
		{Slot: 259, Key: b("ends"), Value: b(""), TTL: 300},
		{Slot: 16383, Key: b("gone"), Gone: true},
	}
	c := LoadRows(7, 3, rows)
	if got, want := hex.EncodeToString(c.Values[0]), "01"+"010201"+"010302ac02"+"3fff00"; got != want {
		t.Errorf("rows are %s, want %s", got, want)
	}
	if err := c.Validate(DefaultLimits()); err != nil {
		t.Fatal(err)
	}
	cmds, err := DecodeCommands(AppendCommands(nil, []Command{c}))
	if err != nil {
		t.Fatal(err)
	}
	got, err := cmds[0].Rows()
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		if got[i].Gone {
			got[i].Value = nil
		}
	}
	if !reflect.DeepEqual(got, rows) {
		t.Fatalf("got  %+v\nwant %+v", got, rows)
	}
	for cut := range c.Values[0] {
		short := c
		short.Values = append([][]byte{c.Values[0][:cut]}, c.Values[1:]...)
		if _, err := short.Rows(); !isDecodeError(err) {
			t.Errorf("cut to %d bytes: error is %v", cut, err)
		}
	}
}

func TestSlotsFormat(t *testing.T) {
	slots := []SlotRange{{0, 0}, {5, 9}, {10, 16383}}
	data := AppendSlots(nil, slots)
	if got, want := hex.EncodeToString(data), "01"+"03"+"00000000"+"00050009"+"000a3fff"; got != want {
		t.Errorf("slots are %s, want %s", got, want)
	}
	if got, err := DecodeSlots(data); err != nil || !reflect.DeepEqual(got, slots) {
		t.Errorf("got %v, %v", got, err)
	}
	for name, bad := range map[string][]SlotRange{"none": nil, "overlap": {{0, 5}, {5, 9}}, "backwards": {{9, 5}}, "slot 16384": {{0, 16384}}} {
		if _, err := DecodeSlots(AppendSlots(nil, bad)); !isDecodeError(err) {
			t.Errorf("%s: error is %v", name, err)
		}
	}
}

// The shapes of the commands about slots.
func TestValidateSlots(t *testing.T) {
	slots := AppendSlots(nil, []SlotRange{{1, 2}})
	for _, c := range []Command{
		{Op: OpSlotsExpect, Int: 1, Values: [][]byte{slots}},
		{Op: OpSlotsOwn, Int: 1, TTL: 3},
		{Op: OpSlotsClear, Int: 10},
		LoadRows(1, 0, nil),
	} {
		if err := c.Validate(DefaultLimits()); err != nil {
			t.Errorf("%v: %v", c.Op, err)
		}
	}
	for _, c := range []Command{
		{Op: OpSlotsExpect, Int: 1},
		{Op: OpSlotsExpect, Values: [][]byte{slots}},
		{Op: OpSlotsOwn, Int: 1, TTL: -1},
		{Op: OpSlotsLoad, Int: 1, Keys: [][]byte{b("k")}, Values: [][]byte{b("v")}},
		{Op: OpSlotsThaw, Int: 1, Keys: [][]byte{b("k")}},
	} {
		if err := c.Validate(DefaultLimits()); err == nil {
			t.Errorf("%v is taken: %+v", c.Op, c)
		}
	}
	inMulti := Command{Op: OpMulti, Values: [][]byte{AppendCommands(nil, []Command{{Op: OpSlotsThaw, Int: 1}}), AppendIndexes(nil, nil)}}
	if err := inMulti.Validate(DefaultLimits()); err == nil {
		t.Error("a transaction may thaw slots")
	}
}

func FuzzSlots(f *testing.F) {
	f.Add(AppendSlots(nil, []SlotRange{{0, 9}, {20, 16383}}))
	f.Add(LoadRows(1, 0, []Row{{Slot: 1, Key: b("k"), TTL: 5}, {Slot: 2, Key: b("l"), Gone: true}}).Values[0])
	f.Fuzz(func(t *testing.T, data []byte) {
		if slots, err := DecodeSlots(data); err == nil {
			if got := AppendSlots(nil, slots); !bytes.Equal(got, data) && len(got) > len(data) {
				t.Errorf("%x comes out as %x", data, got)
			}
		}
		c := Command{Op: OpSlotsLoad, Int: 1, Keys: [][]byte{b("k"), b("l")}, Values: [][]byte{data, b("v"), b("w")}}
		rows, err := c.Rows()
		if err != nil {
			return
		}
		for _, r := range rows {
			if r.Slot >= Slots || r.TTL < 0 {
				t.Errorf("row %+v", r)
			}
		}
	})
}
