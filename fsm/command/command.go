// Package command is the vocabulary of the log: what a client may ask of a
// shard, how it is written into a log entry, and what comes back.
//
// A log entry is a Batch: many commands, applied in order as one unit. Both
// formats begin with a version byte; a decoder for a version that was ever
// released stays for ever, for an entry that decodes differently on two nodes
// is a divergence.
//
// This package is a leaf: it knows no Raft, no storage and no network, so a
// client can use it.
package command

// Op names what a command does. The numbers are in logs: never reorder, never reuse.
type Op uint8

const (
	_ Op = iota

	// OpNoop changes nothing. It opens a term, fences reads and carries time.
	OpNoop
	// OpInit gives an empty shard its identity: Value(0) is an encoded Init. A
	// shard that has one ignores it.
	OpInit

	// Reads. They ride in the log with their neighbours and change nothing.

	OpGet    // Keys[0] → Bytes or Nil
	OpMGet   // Keys → Array of Bytes or Nil
	OpStrlen // Keys[0] → Int (0 for no key)
	OpExists // Keys → Int: how many exist, repeats counted again
	OpType   // Keys[0] → Bytes "string" or "none"
	OpTTL    // Keys[0] → Int: ms left, -1 no TTL, -2 no key

	// Writes.

	OpSet       // Keys[0], Values[0]; FlagIfEqual compares with Values[1]. → OK, Nil if a condition failed; with FlagGet the old value or Nil
	OpMSet      // Keys[i] = Values[i] → OK (Int 1 and 0 with FlagIfAbsent: all or none, for MSETNX)
	OpDel       // Keys → Int: how many were there
	OpIncr      // Keys[0] += Int → Int
	OpIncrFloat // Keys[0] += float in Values[0] (decimal text) → Bytes
	OpAppend    // Keys[0] += Values[0] → Int: new length
	OpGetDel    // Keys[0] → Bytes or Nil
	OpGetEx     // Keys[0]; TTL or FlagPersist → Bytes or Nil
	OpExpire    // Keys[0] TTL (<=0 deletes); FlagIfNoTTL, FlagIfTTL, FlagIfLonger, FlagIfShorter → Int 1 or 0
	OpPersist   // Keys[0] → Int 1 or 0

	// System records: small named values beside the keys of a shard (the shard
	// map and the job ledger live in shard 0's).

	// OpRecordSet stores Values[0] under the name Keys[0] if the record's
	// revision is Int (0: it must not exist) → Int: the new revision, or
	// CodeConflict with the present revision in Int.
	OpRecordSet
	// OpRecordDelete removes record Keys[0] if its revision is Int, or whatever
	// it is if Int < 0 → Int 1, 0 if there was none, or CodeConflict.
	OpRecordDelete

	// Exactly-once writes (Raft thesis, 6.3): see Command.Session.

	// OpSessionOpen makes a session known to the shard. Int 0: a new one → Int: its
	// id, which no session will have again. Otherwise the session of that id, which another
	// shard has made → Int, or CodeSessionExpired if it was here and is gone.
	OpSessionOpen
	// OpSessionCheck is a read: does this shard know session Int? → Int 1, or
	// CodeSessionUnknown or CodeSessionExpired.
	OpSessionCheck

	// OpMulti carries out several commands on one slot with nothing between them,
	// unless a watched key has changed: Values[0] are the commands (AppendCommands), Keys the
	// watched keys, Values[1] their indexes (AppendIndexes): a key that was
	// changed, made or removed by an entry above its index stops all of it. → Array of
	// results, or Nil if a watched key has changed.
	OpMulti

	// Slots that change hands (architecture, decision 10), in the receiver's log. Int is the move's id where
	// nothing else is said; moves have increasing ids. See Attempt and slots.go.

	// OpSlotsExpect begins an attempt to receive the slots in Values[0] (AppendSlots). It ends every earlier
	// attempt. → Int: the attempt's token, above all earlier ones; Nil: the move's slots are owned already; CodeSlotsLeft: rows of an earlier
	// attempt are in the way (OpSlotsClear), and a token in Int; CodeConflict: the move was aborted, or a newer one was seen.
	OpSlotsExpect
	// OpSlotsLoad brings rows: part TTL of attempt Int. Keys and Values[1:] as Values[0] says (LoadRows). → OK, also
	// for a part that was there already, or CodeConflict.
	OpSlotsLoad
	// OpSlotsAnswers brings what numbered commands on the slots were answered: part TTL of
	// attempt Int. → OK or CodeConflict.
	OpSlotsAnswers
	// OpSlotsOwn decides the move: the slots are this shard's, if attempt Int has brought TTL parts. → OK, also
	// when it is repeated, or CodeConflict.
	OpSlotsOwn
	// OpSlotsAbort decides that the move is not made, unless it was. → Int 0: it is not, and never will be; 1: the slots are owned;
	// CodeConflict: a newer move was seen.
	OpSlotsAbort

	// The same in the giver's log.

	// OpSlotsFreeze stops reads and writes of the slots in Values[0], for the attempt with token TTL: CodeSlotsMoving. → OK, or CodeConflict if other slots are
	// frozen, or these for a later attempt.
	OpSlotsFreeze
	// OpSlotsThaw takes that back, if the attempt's token is below TTL. Only after that attempt has ended for good. → OK
	OpSlotsThaw
	// OpSlotsRelease gives the frozen slots up. Only after the receiver owns them. → OK
	OpSlotsRelease

	// OpSlotsClear removes up to Int rows of slots that are neither owned nor expected → Int: how many.
	OpSlotsClear

	// OpSessionSkip has the shard make no more sessions with a count (the lower 48 bits of an id) of Int or below → Int: the count of the last one made.
	OpSessionSkip

	// Pins: what a job reads is the state at one index, on whichever replica. Neither changes the state. Not below feature level sharding.LevelPins.

	// OpPin has every replica keep a view of the state after the whole entry, under the id Int (above 0, and of no other pin), until it is taken
	// back or was not used for TTL milliseconds of the replica's own clock. → Int: the entry's index. That says nothing about any replica: one
	// that has too many pins keeps none.
	OpPin
	// OpUnpin ends pin Int, where there is one → OK
	OpUnpin

	opEnd // one past the last
)

// Flags qualify an Op.
type Flags uint16

const (
	FlagIfAbsent  Flags = 1 << iota // SET NX, MSETNX
	FlagIfPresent                   // SET XX
	FlagGet                         // SET GET: answer the old value
	FlagKeepTTL                     // SET KEEPTTL
	FlagIfEqual                     // SET IFEQ: only if the value equals Values[1]
	FlagPersist                     // GETEX PERSIST
	FlagIfNoTTL                     // EXPIRE NX
	FlagIfTTL                       // EXPIRE XX
	FlagIfLonger                    // EXPIRE GT
	FlagIfShorter                   // EXPIRE LT
)

// Command is one request to one shard. Its slices may alias the buffer it was
// decoded from; whoever keeps them copies them.
type Command struct {
	Op    Op
	Flags Flags
	// Slot is the hash slot of every key in the command, worked out once by the
	// router so that Apply need not hash. Ignored for OpNoop, OpInit, OpRecord*.
	Slot   uint16
	Keys   [][]byte
	Values [][]byte
	Int    int64
	// TTL in milliseconds of the shard's clock; 0 for none (OpSet, OpGetEx). OpPin: see there.
	TTL int64

	// Session, if it is not 0, makes a write exactly-once: the shard carries out
	// the first command with this Session, Seq and Slot and answers every further one
	// with the first one's result. A session the shard does not know: CodeSessionUnknown; one that it has
	// forgotten, or a Seq below the session's Floor: CodeSessionExpired. Neither is carried out.
	Session uint64
	// Seq numbers the session's commands. The parts of one request, each of
	// another slot, have one number.
	Seq uint64
	// Floor is the lowest number whose answer the client may still want; what is
	// below may be forgotten. It is at most Seq.
	Floor uint64
}

// Batch is one log entry.
type Batch struct {
	// ID is known only to the replica that proposed the batch: it alone needs
	// the answers to reads. 0: nobody waits.
	ID uint64
	// ElapsedMillis is how far the shard's clock moves before the first command:
	// what the leader's monotonic clock measured since its last entry. It is the
	// only source of time in a shard.
	ElapsedMillis uint64
	Commands      []Command
}

// Init is a shard's identity, the payload of OpInit. Apply consults nothing but
// entries and replicated state, so the limits that it checks are here.
type Init struct {
	ClusterID string
	Shard     uint32
	Slots     []SlotRange
	Limits    Limits
}

// SlotRange is a run of slots, both ends included.
type SlotRange struct{ From, To uint16 }

// Limits bound what is stored, in bytes.
type Limits struct {
	MaxKey   uint32
	MaxValue uint32
}

// DefaultLimits: key 1 KiB, value 1 MiB.
func DefaultLimits() Limits { return Limits{MaxKey: 1 << 10, MaxValue: 1 << 20} }

// Kind says which field of a Result holds the answer.
type Kind uint8

const (
	KindNil   Kind = iota // no value
	KindOK                // done, nothing to say
	KindInt               // Int
	KindBytes             // Bytes
	KindArray             // Array
	KindError             // Code; Int and Bytes may say more
)

// Code is a command's own error: the shard applied the command and refused it,
// the same on every replica. The numbers go over the wire: never reorder.
type Code uint8

const (
	CodeNone          Code = iota
	CodeNotInteger         // the value is no 64-bit integer
	CodeOverflow           // the sum would not fit 64 bits
	CodeNotFloat           // the value is no float
	CodeNaN                // the sum would be NaN or Inf
	CodeTooLarge           // key or value over the limit; Int is the limit in bytes
	CodeWrongShard         // this shard does not own the slot
	CodeConflict           // a record's revision differs; Int is the present one
	CodeUninitialized      // the shard has no identity yet
	CodeBadCommand         // malformed: wrong number of keys or values
	// CodeSessionUnknown: the session was never opened in this shard. Not carried out.
	CodeSessionUnknown
	// CodeSessionExpired: the session, or the number, was here and is forgotten. Not
	// carried out now; whether it was before is unknown.
	CodeSessionExpired
	// CodeSessionFull: the session has too many numbers whose answers it did not
	// give up. Not carried out.
	CodeSessionFull
	// CodeDiskFull: a disk has no room for more data. No shard ever answers with it: the
	// leader does, before the log.
	CodeDiskFull
	// CodeSlotsMoving: the slot is about to be another shard's. Not carried out; it can be in a moment, here or there.
	CodeSlotsMoving
	// CodeSlotsLeft: slots cannot be expected while rows of an earlier attempt are stored.
	CodeSlotsLeft
)

// Result is the answer to one command.
type Result struct {
	Kind  Kind
	Code  Code
	Int   int64
	Bytes []byte
	Array []Result
}

// Nil, OK, Int, Bytes and Err build results.
func Nil() Result             { return Result{Kind: KindNil} }
func OK() Result              { return Result{Kind: KindOK} }
func Int(n int64) Result      { return Result{Kind: KindInt, Int: n} }
func Bytes(b []byte) Result   { return Result{Kind: KindBytes, Bytes: b} }
func Err(c Code) Result       { return Result{Kind: KindError, Code: c} }
func Array(r []Result) Result { return Result{Kind: KindArray, Array: r} }

// IsRead says whether the command changes nothing.
func (op Op) IsRead() bool {
	return op == OpNoop || (op >= OpGet && op <= OpTTL) || op == OpSessionCheck
}

// IsSlots says whether the command is about slots that change hands. Doing one again does no more than doing it once.
func (op Op) IsSlots() bool { return op >= OpSlotsExpect && op <= OpSlotsClear }

// IsPin says whether the command is about pins. It has no slot, and changes no state.
func (op Op) IsPin() bool { return op == OpPin || op == OpUnpin }

// SessionOrigin is the shard that made a session: its id's upper 16 bits.
func SessionOrigin(session uint64) (shard uint32) { return uint32(session >> 48) }
