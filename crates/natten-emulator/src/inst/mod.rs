//! The predecoded instruction: what the parser's text becomes and the only thing the machine executes.

mod memory;
mod scalar;
mod tcgen05;
mod warp;

use crate::counters::Class;
pub(crate) use memory::*;
pub(crate) use scalar::*;
pub(crate) use tcgen05::*;
pub(crate) use warp::*;

/// Index of a register. The high bit selects the constant file that all warps share.
pub(crate) type Slot = u32;
/// Marks a slot of the constant file.
pub(crate) const CONST: Slot = 1 << 31;
/// No register: an absent guard or the sink `_`.
pub(crate) const NONE: Slot = (1 << 31) - 1;

/// One instruction. Which register file a slot names follows from the operation.
#[derive(Debug, Clone)]
pub(crate) struct Inst {
    pub op: Op,
    /// Predicate that enables lanes, or `NONE`.
    pub guard: Slot,
    pub guard_negated: bool,
    /// Touches a register that a `wgmma` or a `tcgen05.ld` also uses, which may be in flight.
    pub watched: bool,
    pub class: Class,
    pub d: Slot,
    pub a: Slot,
    pub b: Slot,
    pub c: Slot,
    /// Address offset, immediate or table entry.
    pub imm: i64,
    /// Vector operands: a range of `Kernel::lists`.
    pub list: (u32, u16),
}

/// Everything a warp can be asked to do. Operand slots are those of [`Inst`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Nop,
    Exit,
    Trap,
    Bra(u32),
    BrxIdx,
    Mov32,
    Mov64,
    MovPred,
    /// d (wide) = {list[0], list[1]} words.
    Pack64,
    /// {list[0], list[1]} words = a (wide).
    Unpack64,
    /// d (word) = {list[0], list[1]} halves.
    Pack32,
    Unpack32,
    /// d (wide) = four halves.
    Pack64x4,
    Unpack64x4,
    Int1(Int1, IntTy),
    Int2(Int2, IntTy),
    Int3(Int3, IntTy),
    /// 64-bit shift by a 32-bit amount.
    Shift64(Int2),
    Carry {
        subtract: bool,
        carry_in: bool,
        carry_out: bool,
        ty: IntTy,
    },
    MulWide {
        signed: bool,
        ty: IntTy,
    },
    MadWide {
        signed: bool,
        ty: IntTy,
    },
    BfeU(IntTy),
    BfeS(IntTy),
    /// list = a, b, position, length.
    Bfi(IntTy),
    /// Bit mask of `b` ones from position `a`.
    Bmsk {
        wrap: bool,
    },
    Pred2(Logic),
    PredNot,
    /// list = [q], c = extra predicate; imm bit 0 negates c.
    Setp {
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        logic: Option<Logic>,
    },
    Set {
        cmp: Cmp,
        ty: Ty,
        ftz: bool,
        to_float: bool,
        logic: Option<Logic>,
    },
    Testp(Testp, bool),
    Selp32,
    Selp64,
    Slct32 {
        float: bool,
    },
    Slct64 {
        float: bool,
    },
    Float1(Float1, FloatMode),
    Float2(Float2, FloatMode),
    Fma(FloatMode),
    Double1(Float1),
    Double2(Float2),
    DoubleFma,
    Half1(Float1, HalfMode),
    Half2(Float2, HalfMode),
    HalfFma(HalfMode),
    Convert(Convert),
    /// d = {a, b} converted to a pair, a in the upper half.
    ConvertPair {
        bf16: bool,
        rnd: Rnd,
        relu: bool,
    },
    Load(Access),
    Store(Access),
    /// list = data vector, then old-value destination if d is used.
    Atom(Atomic),
    Cvta {
        to_generic: bool,
        space: Space,
        wide: bool,
    },
    IsSpace(Space),
    Clock {
        wide: bool,
    },
    Shfl(Shuffle),
    Vote(Vote),
    MatchAny {
        wide: bool,
    },
    MatchAll {
        wide: bool,
    },
    ActiveMask,
    Redux(Redux),
    Elect,
    WarpSync,
    Bar(Bar),
    Fence(Fence),
    Nanosleep,
    Mma(Mma),
    /// `ldmatrix`: list = destinations.
    LdMatrix {
        trans: bool,
        wide_address: bool,
    },
    StMatrix {
        trans: bool,
        wide_address: bool,
    },
    MovMatrix,
    CpAsync {
        bytes: u8,
        wide_shared: bool,
        wide_global: bool,
        ignore: bool,
    },
    CpCommit,
    CpWait,
    CpWaitAll,
    CpMbarrierArrive {
        no_increment: bool,
        wide_address: bool,
    },
    Mbarrier(Mbar, bool),
    Bulk(Bulk),
    BulkCommit,
    BulkWait {
        read: bool,
    },
    Wgmma(Wgmma),
    WgmmaFence,
    WgmmaCommit,
    WgmmaWait,
    Tcgen05(Tcgen05),
    SetMaxNReg {
        increase: bool,
    },
    Mapa {
        wide: bool,
    },
    GetCtaRank {
        wide: bool,
    },
    ClusterArrive,
    ClusterWait,
}
