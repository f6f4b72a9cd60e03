package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"

	"cel.dev/cel-go/cel"
	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/vm"
	"github.com/tetratelabs/wazero"
	"go.starlark.net/starlark"
	"go.starlark.net/syntax"

	"github.com/abacusdb/abacus/bench/peers/internal/dataset"
	"github.com/abacusdb/abacus/bench/peers/internal/measure"
)

// fnWasm is this module, assembled (memory of 2 MiB; record sums 32 i64 of one 256 B record):
//
//	(module
//	  (memory (export "memory") 32)
//	  (func (export "square") (param i64) (result i64)
//	    local.get 0 local.get 0 i64.mul)
//	  (func $rec (param $p i32) (result i64)
//	    (local $e i32) (local $s i64)
//	    local.get $p i32.const 256 i32.add local.set $e
//	    (loop $l
//	      local.get $s local.get $p i64.load i64.add local.set $s
//	      local.get $p i32.const 8 i32.add local.tee $p
//	      local.get $e i32.lt_u br_if $l)
//	    local.get $s)
//	  (func (export "record") (param i32) (result i64) local.get 0 call $rec)
//	  (func (export "squares") (param $p i32) (param $n i32) (result i64)
//	    (local $s i64) (local $v i64)
//	    (loop $l
//	      local.get $p i64.load local.tee $v local.get $v i64.mul local.get $s i64.add local.set $s
//	      local.get $p i32.const 8 i32.add local.set $p
//	      local.get $n i32.const 1 i32.sub local.tee $n br_if $l)
//	    local.get $s)
//	  (func (export "records") (param $p i32) (param $n i32) (result i64)
//	    (local $s i64)
//	    (loop $l
//	      local.get $s local.get $p call $rec i64.add local.set $s
//	      local.get $p i32.const 256 i32.add local.set $p
//	      local.get $n i32.const 1 i32.sub local.tee $n br_if $l)
//	    local.get $s))
const fnWasm = "0061736d0100000001110360017e017e60017f017e60027f7f017e03060500010102020503010020073005066d656d6f72790200067371756172650000067265636f7264000207737175617265730003077265636f72647300040a8701050700200020007e0b2902017f017e20004180026a21010340200220002903007c2102200041086a22002001490d000b20020b0600200010010b2801027e03402000290300220320037e20027c2102200041086a2100200141016b22010d000b20020b2301017e03402002200010017c210220004180026a2100200141016b22010d000b20020b"

var sink int64

// fnBench measures the cost a record of calling a user's function.
func fnBench([]string) {
	ctx := context.Background()
	rec := make([]byte, 256)
	for i := range rec {
		rec[i] = byte(i)
	}
	bench := func(name string, per int, f func()) {
		var v []float64
		for r := 0; r < 5; r++ {
			n := 0
			t := time.Now()
			for time.Since(t) < 400*time.Millisecond {
				for k := 0; k < 16; k++ {
					f()
				}
				n += 16 * per
			}
			v = append(v, float64(time.Since(t).Nanoseconds())/float64(n))
		}
		m, lo, hi := measure.Median(v)
		fmt.Printf("fn %-62s %9.1f ns/record [%.1f..%.1f]\n", name, m, lo, hi)
	}

	sq := func(x int64) int64 { return x * x }
	bench("Go closure square(int64), 4096 a loop", 4096, func() {
		for i := int64(0); i < 4096; i++ {
			sink += sq(i)
		}
	})
	bench("Go sum of a 256 B record's 32 int64", 1, func() {
		for i := 0; i < 256; i += 8 {
			sink += int64(binary.LittleEndian.Uint64(rec[i:]))
		}
	})
	js := dataset.Record(123456)
	bench("encoding/json.Unmarshal 256 B into a struct", 1, func() {
		var r dataset.Row
		measure.Check(json.Unmarshal(js, &r))
		sink += r.N
	})
	bench("encoding/json.Unmarshal 256 B into a map", 1, func() {
		var m map[string]any
		measure.Check(json.Unmarshal(js, &m))
		sink += int64(len(m))
	})
	bench("find one integer field by scanning the bytes", 1, func() { sink += dataset.ScanN(js) })

	// expr
	{
		env := map[string]any{"n": 7}
		p, err := expr.Compile("n * n", expr.Env(env))
		measure.Check(err)
		var m vm.VM
		bench("expr n*n, map env, VM kept", 1, func() {
			env["n"] = int(sink & 1023)
			o, err := m.Run(p, env)
			measure.Check(err)
			sink += int64(o.(int))
		})
		type E struct{ N int }
		p2, err := expr.Compile("N * N", expr.Env(E{}))
		measure.Check(err)
		e := &E{}
		bench("expr N*N, struct env, VM kept", 1, func() {
			e.N = int(sink & 1023)
			o, err := m.Run(p2, e)
			measure.Check(err)
			sink += int64(o.(int))
		})
		p3, err := expr.Compile(`n > 10 && grp startsWith "g" ? n * 2 : 0`, expr.Env(map[string]any{"n": 0, "grp": ""}))
		measure.Check(err)
		env3 := map[string]any{"n": 0, "grp": "g7"}
		bench(`expr n>10 && grp startsWith "g" ? n*2 : 0, map env`, 1, func() {
			env3["n"] = int(sink & 1023)
			o, err := m.Run(p3, env3)
			measure.Check(err)
			sink += int64(o.(int))
		})
	}
	// CEL
	{
		env, err := cel.NewEnv(cel.Variable("n", cel.IntType), cel.Variable("grp", cel.StringType))
		measure.Check(err)
		for _, src := range []string{"n * n", `n > 10 && grp.startsWith("g") ? n * 2 : 0`} {
			ast, iss := env.Compile(src)
			measure.Check(iss.Err())
			prg, err := env.Program(ast, cel.EvalOptions(cel.OptOptimize))
			measure.Check(err)
			in := map[string]any{"n": int64(0), "grp": "g7"}
			bench("CEL "+src, 1, func() {
				in["n"] = sink & 1023
				o, _, err := prg.Eval(in)
				measure.Check(err)
				sink += o.Value().(int64)
			})
		}
	}
	// Starlark
	{
		th := &starlark.Thread{}
		g, err := starlark.ExecFileOptions(&syntax.FileOptions{}, th, "f.star", "def f(n):\n  return n*n\ndef s(b):\n  t = 0\n  for x in b.elems():\n    t += x\n  return t\ndef batch(a):\n  return [n*n for n in a]\n", nil)
		measure.Check(err)
		args := make(starlark.Tuple, 1)
		bench("Starlark f(n)=n*n, a call a record", 1, func() {
			args[0] = starlark.MakeInt64(sink & 1023)
			o, err := starlark.Call(th, g["f"], args, nil)
			measure.Check(err)
			x, _ := o.(starlark.Int).Int64()
			sink += x
		})
		bench("Starlark sum of a 256 B record's bytes", 1, func() {
			args[0] = starlark.Bytes(rec)
			o, err := starlark.Call(th, g["s"], args, nil)
			measure.Check(err)
			x, _ := o.(starlark.Int).Int64()
			sink += x
		})
		bench("Starlark [n*n for n in a], 4096 a call", 4096, func() {
			l := make([]starlark.Value, 4096)
			for i := range l {
				l[i] = starlark.MakeInt(i)
			}
			o, err := starlark.Call(th, g["batch"], starlark.Tuple{starlark.NewList(l)}, nil)
			measure.Check(err)
			sink += int64(o.(*starlark.List).Len())
		})
	}
	// wazero
	bin, err := hex.DecodeString(fnWasm)
	measure.Check(err)
	for _, w := range []struct {
		n string
		c wazero.RuntimeConfig
	}{
		{"wazero compiler", wazero.NewRuntimeConfigCompiler()},
		{"wazero compiler, ends with the context", wazero.NewRuntimeConfigCompiler().WithCloseOnContextDone(true)},
		{"wazero interpreter", wazero.NewRuntimeConfigInterpreter()},
	} {
		rt := wazero.NewRuntimeWithConfig(ctx, w.c)
		t := time.Now()
		cm, err := rt.CompileModule(ctx, bin)
		measure.Check(err)
		tc := time.Since(t)
		t = time.Now()
		m, err := rt.InstantiateModule(ctx, cm, wazero.NewModuleConfig().WithName(""))
		measure.Check(err)
		fmt.Printf("fn %s: compile %s, instantiate %s (2 MiB memory)\n", w.n, tc.Round(time.Microsecond), time.Since(t).Round(time.Microsecond))
		cctx, cancel := context.WithCancel(ctx)
		mem := m.Memory()
		fsq, frec, fsqs, frecs := m.ExportedFunction("square"), m.ExportedFunction("record"), m.ExportedFunction("squares"), m.ExportedFunction("records")
		st := make([]uint64, 2)
		bench(w.n+": square(i64), a call a record", 1, func() {
			st[0] = uint64(sink & 1023)
			measure.Check(fsq.CallWithStack(cctx, st))
			sink += int64(st[0])
		})
		bench(w.n+": write 256 B + record(ptr), a call a record", 1, func() {
			mem.Write(0, rec)
			st[0] = 0
			measure.Check(frec.CallWithStack(cctx, st))
			sink += int64(st[0])
		})
		bench(w.n+": write 4096 i64 + squares(ptr, n), a call a batch", 4096, func() {
			b, _ := mem.Read(0, 4096*8)
			for i := 0; i < 4096; i++ {
				binary.LittleEndian.PutUint64(b[i*8:], uint64(i))
			}
			st[0], st[1] = 0, 4096
			measure.Check(fsqs.CallWithStack(cctx, st))
			sink += int64(st[0])
		})
		bench(w.n+": write 4096 records + records(ptr, n), a call a batch", 4096, func() {
			b, _ := mem.Read(0, 4096*256)
			for i := 0; i < 4096; i++ {
				copy(b[i*256:], rec)
			}
			st[0], st[1] = 0, 4096
			measure.Check(frecs.CallWithStack(cctx, st))
			sink += int64(st[0])
		})
		cancel()
		rt.Close(ctx)
	}
}
