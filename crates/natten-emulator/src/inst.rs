//! The predecoded instruction: what the parser's text becomes and the only thing the machine executes.

use crate::counters::Class;

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
    /// Touches a register that a `wgmma` also uses, which may be in flight.
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

/// Width and sign extension of integer arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum IntTy {
    U16,
    S16,
    W32,
    W64,
}

/// Scalar types as PTX spells them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    F32,
    F64,
    Tf32,
    Pred,
}

impl Ty {
    pub(crate) fn bytes(self) -> u32 {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::Pred => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::Bf16 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::F16x2 | Ty::Bf16x2 | Ty::Tf32 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => 8,
            Ty::B128 => 16,
        }
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Ty::S8 | Ty::S16 | Ty::S32 | Ty::S64)
    }

    pub(crate) fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::F16x2 | Ty::Bf16 | Ty::Bf16x2 | Ty::F32 | Ty::F64 | Ty::Tf32)
    }

    pub(crate) fn is_wide(self) -> bool {
        self.bytes() == 8
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int1 {
    Not,
    Cnot,
    Neg,
    Abs,
    Popc,
    Clz,
    Brev,
    BfindU,
    BfindS,
    BfindShiftU,
    BfindShiftS,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int2 {
    Add,
    Sub,
    AddSatS,
    SubSatS,
    MulLo,
    MulHiU,
    MulHiS,
    Mul24U,
    Mul24S,
    And,
    Or,
    Xor,
    Shl,
    ShrU,
    ShrS,
    MinU,
    MinS,
    MaxU,
    MaxS,
    DivU,
    DivS,
    RemU,
    RemS,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Int3 {
    MadLo,
    MadHiU,
    MadHiS,
    Mad24U,
    Mad24S,
    SadU,
    SadS,
    Lop3(u8),
    Prmt,
    PrmtMode(PrmtMode),
    ShfL { wrap: bool },
    ShfR { wrap: bool },
    Dp4aU,
    Dp4aS,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PrmtMode {
    F4e,
    B4e,
    Rc8,
    Ecl,
    Ecr,
    Rc16,
}

/// Rounding of floats (`Rn` .. `Rp`) and to integers (`Rni` .. `Rpi`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rnd {
    Rn,
    Rna,
    Rz,
    Rm,
    Rp,
    Rni,
    Rzi,
    Rmi,
    Rpi,
}

/// Modifiers of f32 arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FloatMode {
    pub rnd: Rnd,
    pub ftz: bool,
    pub sat: bool,
}

impl FloatMode {
    pub(crate) fn is_plain(self) -> bool {
        self.rnd == Rnd::Rn && !self.ftz && !self.sat
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float1 {
    Neg,
    Abs,
    Rcp,
    Sqrt,
    Rsqrt,
    Ex2,
    Lg2,
    Sin,
    Cos,
    Tanh,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Float2 {
    Add,
    Sub,
    Mul,
    Div,
    Min,
    Max,
    MinNan,
    MaxNan,
    Copysign,
}

/// Element format of half precision arithmetic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HalfMode {
    pub bf16: bool,
    pub packed: bool,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logic {
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Testp {
    Finite,
    Infinite,
    Number,
    NotANumber,
    Normal,
    Subnormal,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Convert {
    pub to: Ty,
    pub from: Ty,
    pub rnd: Option<Rnd>,
    pub ftz: bool,
    pub sat: bool,
    pub relu: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    Generic,
    Global,
    Shared,
    Local,
    Param,
}

/// Ordering strength of a memory operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Strength {
    /// An ordinary access: two of them from different warps need synchronisation between them.
    Weak,
    /// `.volatile` or `.relaxed`: may meet other strong accesses.
    Relaxed,
    Acquire,
    Release,
    AcqRel,
}

/// A load or a store; the address is slot `a` plus `imm`, the registers are the list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Access {
    pub space: Space,
    /// The address register is 64 bits wide.
    pub wide_address: bool,
    /// Bytes per element.
    pub bytes: u8,
    /// Elements per lane: 1, 2, 4 or 8.
    pub count: u8,
    /// Sign-extend loads narrower than the register.
    pub signed: bool,
    /// Data registers are 64 bits wide.
    pub wide_data: bool,
    pub strength: Strength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtomOp {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exch,
    Cas,
    Inc,
    Dec,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Atomic {
    pub space: Space,
    pub wide_address: bool,
    pub op: AtomOp,
    pub ty: Ty,
    /// Elements per lane of a vector reduction.
    pub count: u8,
    pub strength: Strength,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Up,
    Down,
    Butterfly,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Uniform,
    Ballot,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Redux {
    Add,
    MinU,
    MinS,
    MaxU,
    MaxS,
    And,
    Or,
    Xor,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BarKind {
    Sync,
    Arrive,
    Popc,
    And,
    Or,
}

/// A named-barrier operation: slot `a` is the barrier, slot `b` the thread count or `NONE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bar {
    pub kind: BarKind,
    pub aligned: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fence {
    /// `membar` and `fence.sc` / `fence.acq_rel`.
    Memory,
    /// `fence.proxy.async`: orders generic accesses before the asynchronous proxy.
    ProxyAsync,
    /// `fence.mbarrier_init`: makes initialised mbarriers visible to the asynchronous proxy.
    MbarrierInit,
    /// Other proxies, which need no model here.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MmaType {
    F16,
    Bf16,
    Tf32,
}

/// `mma.sync` m16n8kK; the list is D, A, B, C in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mma {
    pub ty: MmaType,
    pub k: u8,
    /// D and C hold f16 pairs instead of f32.
    pub half_accumulators: bool,
}

/// `wgmma.mma_async` m64nN; the list is D followed by A when that is in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Wgmma {
    pub ty: MmaType,
    pub n: u16,
    pub half_accumulators: bool,
    pub a_in_registers: bool,
    pub negate_a: bool,
    pub negate_b: bool,
    pub transpose_a: bool,
    pub transpose_b: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mbar {
    Init,
    Inval,
    /// Arrive with an optional count; `expect` first adds to the transaction count.
    Arrive {
        expect: bool,
        drop: bool,
        no_complete: bool,
    },
    ExpectTx,
    CompleteTx,
    /// Waits on a state token (`parity` false) or on a phase parity.
    Wait {
        parity: bool,
    },
    PendingCount,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BulkReduce {
    None,
    Add(Ty),
    Min(Ty),
    Max(Ty),
}

/// `cp.async.bulk` and `cp.async.bulk.tensor`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bulk {
    pub to_shared: bool,
    /// Source is shared memory as well (shared::cta to shared::cluster).
    pub from_shared: bool,
    pub rank: u8,
    pub reduce: BulkReduce,
    pub wide_shared: bool,
    pub wide_global: bool,
    pub wide_mbarrier: bool,
    /// Number of multicast mask operands (0 or 1).
    pub multicast: bool,
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
