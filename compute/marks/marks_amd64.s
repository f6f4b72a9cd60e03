#include "textflag.h"

DATA marks<>+0(SB)/8, $0x000000001f5c2200
GLOBL marks<>(SB), RODATA|NOPTR, $8

// func index(p *byte, n int) int
TEXT ·index(SB), NOSPLIT, $0-24
	MOVQ         p+0(FP), SI
	MOVQ         n+8(FP), CX
	XORL         AX, AX
	VPBROADCASTB marks<>+1(SB), Y13 // "
	VPBROADCASTB marks<>+2(SB), Y14 // \
	VPBROADCASTB marks<>+3(SB), Y15 // the last control character
	MOVQ         CX, DX
	ANDQ         $-32, DX

step:
	VMOVDQU   (SI)(AX*1), Y0
	VPCMPEQB  Y0, Y13, Y2
	VPCMPEQB  Y0, Y14, Y3
	VPMINUB   Y0, Y15, Y4
	VPCMPEQB  Y0, Y4, Y4
	VPOR      Y2, Y3, Y2
	VPOR      Y2, Y4, Y2
	VPMOVMSKB Y2, BX
	TESTL     BX, BX
	JNE       found
	ADDQ      $32, AX
	CMPQ      AX, DX
	JNE       step
	VZEROUPPER
	MOVQ      CX, ret+16(FP)
	RET

found:
	VZEROUPPER
	BSFL BX, BX
	ADDQ BX, AX
	MOVQ AX, ret+16(FP)
	RET
