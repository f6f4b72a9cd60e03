#include "textflag.h"

// func prefetch(addr, lines uintptr)
TEXT ·prefetch(SB), NOSPLIT, $0-16
	MOVD addr+0(FP), R0
	MOVD lines+8(FP), R1

line:
	PRFM (R0), PLDL1KEEP
	ADD  $64, R0
	SUBS $1, R1, R1
	BNE  line
	RET
