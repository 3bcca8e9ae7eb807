//! The syntax tree of a module: declarations, and per entry a flat list of instructions with names resolved.

use crate::inst::Ty;

/// A virtual register: its index among all registers of the entry.
pub(crate) type VReg = u32;

/// Which register file a declared type lives in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum RegClass {
    /// 8, 16 and 32 bits.
    Word,
    /// 64 bits.
    Wide,
    Pred,
}

impl RegClass {
    pub(crate) fn of(ty: Ty) -> Self {
        match ty {
            Ty::Pred => RegClass::Pred,
            _ if ty.bytes() == 8 => RegClass::Wide,
            _ => RegClass::Word,
        }
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Operand {
    Reg(VReg),
    /// Integer literal, sign already applied.
    Int(i64),
    /// `0f` and `0d` literals.
    F32(u32),
    F64(u64),
    /// `%tid.x` and the like, without the per cent sign.
    Special(String),
    /// A variable or parameter.
    Symbol(Symbol),
    /// A label, still a name.
    Label(String),
    Vector(Vec<Operand>),
    /// `[base + offset]`; the coordinates of a tensor address follow the base.
    Address {
        base: Box<Operand>,
        offset: i64,
        coordinates: Vec<Operand>,
    },
    /// `p|q`.
    Pair(Box<Operand>, Box<Operand>),
    /// `!p`.
    Not(Box<Operand>),
    /// `_`.
    Sink,
}

/// Where a named variable lives and at which byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Symbol {
    Param(u32),
    Shared(u32),
    Local(u32),
    /// Index among the module's `.global` and `.const` variables.
    Global(u32),
}

/// One parsed instruction.
#[derive(Debug, Clone)]
pub(crate) struct Statement {
    pub line: u32,
    pub text: String,
    /// File number and line of the last `.loc`.
    pub source: Option<(u32, u32)>,
    pub guard: Option<(VReg, bool)>,
    /// Base opcode first.
    pub opcode: Vec<String>,
    pub operands: Vec<Operand>,
    /// Innermost brace scope, for labels.
    pub scope: usize,
}

/// A label and the instruction it stands before.
#[derive(Debug, Clone)]
pub(crate) struct Label {
    pub name: String,
    pub scope: usize,
    pub target: u32,
}

/// `NAME: .branchtargets L1, L2;`
#[derive(Debug, Clone)]
pub(crate) struct BranchTable {
    pub name: String,
    pub scope: usize,
    pub labels: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct ParamDecl {
    pub name: String,
    pub bytes: u32,
    pub align: u32,
    pub offset: u32,
}

/// An entry as parsed.
#[derive(Debug, Default)]
pub(crate) struct EntryAst {
    pub name: String,
    pub params: Vec<ParamDecl>,
    pub maxntid: Option<[u32; 3]>,
    pub reqntid: Option<[u32; 3]>,
    pub minnctapersm: Option<u32>,
    /// Bytes of `.shared` declared in this entry, or in the module before it.
    pub shared_bytes: u32,
    /// Offset at which dynamic shared memory starts.
    pub dynamic_shared: u32,
    pub local_bytes: u32,
    /// Class of every virtual register.
    pub registers: Vec<RegClass>,
    pub statements: Vec<Statement>,
    pub labels: Vec<Label>,
    pub tables: Vec<BranchTable>,
    /// Parent of each brace scope; the outermost is its own.
    pub scopes: Vec<usize>,
}

/// A `.global` or `.const` variable with its initial bytes.
#[derive(Debug, Clone)]
pub(crate) struct GlobalDecl {
    pub bytes: u64,
    pub initial: Vec<u8>,
}

#[derive(Debug, Default)]
pub(crate) struct ModuleAst {
    pub target: String,
    pub version: (u32, u32),
    pub files: Vec<(u32, String)>,
    pub globals: Vec<GlobalDecl>,
    pub entries: Vec<EntryAst>,
}
