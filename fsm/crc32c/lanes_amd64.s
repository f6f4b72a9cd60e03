#include "textflag.h"

// REST sums up DX bytes from SI on, one after the other, in AX.
#define REST(loop, four, two, one, done) \
loop: \
	CMPQ   DX, $8; \
	JB     four; \
	CRC32Q (SI), AX; \
	ADDQ   $8, SI; \
	SUBQ   $8, DX; \
	JMP    loop; \
four: \
	TESTQ  $4, DX; \
	JZ     two; \
	CRC32L (SI), AX; \
	ADDQ   $4, SI; \
two: \
	TESTQ  $2, DX; \
	JZ     one; \
	CRC32W (SI), AX; \
	ADDQ   $2, SI; \
one: \
	TESTQ  $1, DX; \
	JZ     done; \
	CRC32B (SI), AX; \
done:

// func sum(key *byte, keySize int, rest *byte, size, words int, past1, past2 uint64) uint32
TEXT ·sum(SB), NOSPLIT, $0-60
	MOVQ key+0(FP), SI
	MOVQ keySize+8(FP), DX
	MOVL $-1, AX
	REST(key, key4, key2, key1, value)

	MOVQ  rest+16(FP), SI
	MOVQ  size+24(FP), DX
	MOVQ  words+32(FP), CX
	TESTQ CX, CX
	JZ    tail

	// Three lanes: AX, BX, R8 are their sums, SI, DI, R9 their ends.
	LEAQ (SI)(CX*8), SI
	LEAQ (SI)(CX*8), DI
	LEAQ (DI)(CX*8), R9
	LEAQ (CX)(CX*2), R10
	SHLQ $3, R10
	SUBQ R10, DX
	NEGQ CX
	XORL BX, BX
	XORL R8, R8

lanes:
	CRC32Q (SI)(CX*8), AX
	CRC32Q (DI)(CX*8), BX
	CRC32Q (R9)(CX*8), R8
	INCQ   CX
	JNE    lanes

	// The first goes past the other two, the second past the third.
	MOVQ      past2+48(FP), X1
	MOVQ      past1+40(FP), X3
	MOVQ      AX, X0
	MOVQ      BX, X2
	PCLMULQDQ $0, X1, X0
	PCLMULQDQ $0, X3, X2
	PXOR      X2, X0
	MOVQ      X0, BX
	XORL      AX, AX
	CRC32Q    BX, AX
	XORL      R8, AX
	MOVQ      R9, SI

	REST(tail, tail4, tail2, tail1, done)
	NOTL AX
	MOVL AX, ret+56(FP)
	RET
