//! A parsed module: its entries with their launch properties, and the predecoded code behind them.

use std::sync::Arc;

use crate::decode::{self, Target};
use crate::fault::{ParseError, TargetError};
use crate::inst::{Inst, NONE, Slot};
use crate::mutate::beside::Beside;
use crate::ptx::ast::{EntryAst, GlobalDecl, RegClass};
use crate::ptx::parse::parse_module;

/// PTX text, parsed and decoded once, to be launched any number of times.
#[derive(Debug, Clone)]
pub struct Module {
    pub(crate) entries: Vec<Entry>,
    target: Target,
    pub(crate) files: Vec<(u32, String)>,
    pub(crate) globals: Vec<GlobalDecl>,
}

impl Module {
    /// Parses PTX text. Every instruction of every entry is decoded here.
    ///
    /// # Errors
    /// Names the line of the first statement that is malformed or of a form the emulator does not know.
    pub fn parse(ptx: &str) -> Result<Self, ParseError> {
        let ast = parse_module(ptx)?;
        let target = Target { name: ast.target, version: ast.version };
        let entries = ast.entries.iter().map(|entry| Entry::new(entry, &target)).collect::<Result<_, _>>()?;
        Ok(Self { entries, target, files: ast.files, globals: ast.globals })
    }

    /// Fails where a device of this compute capability does not load the module.
    pub(crate) fn check_device(&self, major: u32, minor: u32) -> Result<(), TargetError> {
        if self.target.loads_on(major, minor) {
            return Ok(());
        }
        Err(TargetError { target: self.target.name.clone(), major, minor })
    }

    /// The kernels of the module, in the order of the text.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = &Entry> {
        self.entries.iter()
    }

    /// The kernel of this name.
    pub fn entry(&self, name: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.name == name)
    }

    /// The `.target`, such as `sm_80`.
    pub fn target(&self) -> &str {
        &self.target.name
    }

    /// The PTX `.version` as major and minor.
    pub fn version(&self) -> (u32, u32) {
        self.target.version
    }

    pub(crate) fn file(&self, number: u32) -> Option<&str> {
        self.files.iter().find(|f| f.0 == number).map(|f| f.1.as_str())
    }
}

/// One kernel parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Param {
    /// Name in the PTX.
    pub name: String,
    /// Size in bytes.
    pub bytes: usize,
    /// Alignment in bytes.
    pub align: usize,
    pub(crate) offset: usize,
}

/// One kernel: what a launch has to respect.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Entry {
    /// Name to launch it by.
    pub name: String,
    /// Parameters in order.
    pub params: Vec<Param>,
    /// Bytes of statically declared shared memory.
    pub static_shared_bytes: u32,
    /// `.maxntid`: upper bounds of the block.
    pub maxntid: Option<[u32; 3]>,
    /// `.reqntid`: the only block allowed.
    pub reqntid: Option<[u32; 3]>,
    /// `.minnctapersm`: CTAs that must fit one multiprocessor, which bounds the registers.
    pub minnctapersm: Option<u32>,
    /// Offset of dynamic shared memory.
    pub(crate) dynamic_shared: u32,
    pub(crate) kernel: Arc<Kernel>,
}

impl Entry {
    fn new(ast: &EntryAst, target: &Target) -> Result<Self, ParseError> {
        let params = ast.params.iter().map(|p| Param {
            name: p.name.clone(),
            bytes: p.bytes as usize,
            align: p.align as usize,
            offset: p.offset as usize,
        });
        Ok(Self {
            name: ast.name.clone(),
            params: params.collect(),
            static_shared_bytes: ast.shared_bytes,
            maxntid: ast.maxntid,
            reqntid: ast.reqntid,
            minnctapersm: ast.minnctapersm,
            dynamic_shared: ast.dynamic_shared,
            kernel: Arc::new(decode::decode(ast, target)?),
        })
    }

    /// Instructions of the kernel as written, without labels and declarations.
    pub fn instruction_count(&self) -> usize {
        self.kernel.lines.len()
    }
}

/// Predecoded code of an entry.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    pub code: Vec<Inst>,
    pub lists: Vec<Slot>,
    pub constants: Arc<Constants>,
    /// Sizes of a warp's register files.
    pub words: usize,
    pub wides: usize,
    pub preds: usize,
    pub preloads: Vec<Preload>,
    /// Text behind each instruction; the closing trap has none.
    pub lines: Vec<Line>,
    pub tables: Vec<Vec<u32>>,
    pub local_bytes: u32,
    /// For each instruction, the registers to look at before it runs.
    pub watches: Vec<Watch>,
    /// How many registers are followed because they may be read before they were written.
    pub followed: usize,
    /// Where registers came from before they were allotted.
    pub origin: Arc<Origin>,
    /// Another version of one instruction, to be compared.
    pub beside: Option<Arc<Beside>>,
}

/// The registers of the text.
#[derive(Debug, Default)]
pub(crate) struct Origin {
    /// Of each instruction: d, a, b, c.
    pub slots: Vec<[Slot; 4]>,
    /// Of each instruction, or `NONE`.
    pub guards: Vec<Slot>,
    /// Of each register the one instruction that writes it.
    pub definitions: Vec<Option<u32>>,
    /// Of each register how many do.
    pub written: Vec<u32>,
    /// Of each register the instructions that read it, or have it for a guard, once for each operand.
    pub readers: Vec<Vec<u32>>,
    /// Of each instruction the registers that it writes.
    pub writes: Vec<Box<[Slot]>>,
    /// Registers that are special ones.
    pub specials: Vec<(Slot, SpecialRegister)>,
}

/// See [`Kernel::watches`].
#[derive(Debug, Clone)]
pub(crate) struct Watch {
    /// Registers of some `wgmma` or `tcgen05.ld` that the instruction reads and writes.
    pub reads: Box<[Slot]>,
    pub writes: Box<[Slot]>,
    /// Numbers of followed registers that it reads and writes, and of the predicate that guards it, or `NONE`.
    pub followed_reads: Box<[u32]>,
    pub followed_writes: Box<[u32]>,
    pub guard: u32,
}

impl Watch {
    pub(crate) fn is_empty(&self) -> bool {
        let lists = [&self.reads, &self.writes, &self.followed_reads, &self.followed_writes];
        lists.iter().all(|list| list.is_empty()) && self.guard == NONE
    }
}

impl Kernel {
    /// Vector operands of an instruction.
    pub(crate) fn list(&self, inst: &Inst) -> &[Slot] {
        &self.lists[inst.list.0 as usize..][..inst.list.1 as usize]
    }
}

/// Literals, splatted over the lanes.
#[derive(Debug, Default, Clone)]
pub(crate) struct Constants {
    pub words: Vec<[u32; 32]>,
    pub wides: Vec<[u64; 32]>,
    pub preds: Vec<u32>,
}

/// Where an instruction came from.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub line: u32,
    pub text: String,
    pub source: Option<(u32, u32)>,
}

/// A register that holds a special value from the start.
#[derive(Debug, Clone)]
pub(crate) struct Preload {
    pub slot: Slot,
    pub class: RegClass,
    pub register: SpecialRegister,
}

/// Values fixed for the life of a thread. Clocks are not: they are instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum SpecialRegister {
    Tid(u8),
    Ntid(u8),
    Ctaid(u8),
    Nctaid(u8),
    LaneId,
    WarpId,
    NWarpId,
    LaneMask(LaneMask),
    ClusterId(u8),
    NClusterId(u8),
    DynamicSharedBytes,
    TotalSharedBytes,
    Zero,
    One,
    /// Address of a module variable plus an offset.
    GlobalVariable(u32, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum LaneMask {
    Eq,
    Le,
    Lt,
    Ge,
    Gt,
}

impl SpecialRegister {
    /// By PTX name without the per cent sign; `None` for those that change over time.
    pub(crate) fn named(name: &str) -> Option<Self> {
        let (base, axis) = match name.split_once('.') {
            Some((base, "x")) => (base, 0),
            Some((base, "y")) => (base, 1),
            Some((base, "z")) => (base, 2),
            Some(_) => return None,
            None => (name, 3),
        };
        Some(match (base, axis) {
            ("tid", 0..3) => Self::Tid(axis),
            ("ntid", 0..3) => Self::Ntid(axis),
            ("ctaid", 0..3) => Self::Ctaid(axis),
            ("nctaid", 0..3) => Self::Nctaid(axis),
            ("clusterid", 0..3) => Self::ClusterId(axis),
            ("nclusterid", 0..3) => Self::NClusterId(axis),
            ("cluster_ctaid", 0..3) => Self::Zero,
            ("cluster_nctaid", 0..3) => Self::One,
            ("laneid", 3) => Self::LaneId,
            ("warpid", 3) => Self::WarpId,
            ("nwarpid", 3) => Self::NWarpId,
            ("nsmid" | "cluster_nctarank", 3) => Self::One,
            ("smid" | "gridid" | "cluster_ctarank" | "is_explicit_cluster" | "envreg0", 3) => Self::Zero,
            ("lanemask_eq", 3) => Self::LaneMask(LaneMask::Eq),
            ("lanemask_le", 3) => Self::LaneMask(LaneMask::Le),
            ("lanemask_lt", 3) => Self::LaneMask(LaneMask::Lt),
            ("lanemask_ge", 3) => Self::LaneMask(LaneMask::Ge),
            ("lanemask_gt", 3) => Self::LaneMask(LaneMask::Gt),
            ("dynamic_smem_size", 3) => Self::DynamicSharedBytes,
            ("total_smem_size" | "aggr_smem_size", 3) => Self::TotalSharedBytes,
            _ => return None,
        })
    }
}
