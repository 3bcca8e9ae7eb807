//! One CTA: what its warps share, and how it is set up for reuse from CTA to CTA.

use std::sync::Arc;

use super::barrier::Barrier;
use super::rng::Rng;
use super::warp::Warp;
use crate::asynchronous::Pending;
use crate::asynchronous::bulk::BulkQueue;
use crate::asynchronous::cp_async::CopyQueue;
use crate::asynchronous::mbarrier::Mbarriers;
use crate::counters::{Counters, Coverage};
use crate::memory::SHARED_BASE;
use crate::memory::shared::Shared;
use crate::memory::view::View;
use crate::module::{Entry, Kernel, LaneMask, Module, SpecialRegister};
use crate::options::Options;
use crate::ptx::ast::RegClass;
use crate::race::Races;
use crate::race::global::GlobalRaces;
use crate::scalar::map;
use crate::tensor::operand::Matrices;
use crate::tensor_memory::TensorMemory;

/// What all CTAs of a launch share.
#[derive(Debug)]
pub(crate) struct Grid<'m> {
    pub module: &'m Module,
    pub entry: &'m Entry,
    pub kernel: Arc<Kernel>,
    pub options: Options,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub dynamic_shared: u32,
    /// The parameter space.
    pub params: Vec<u8>,
    pub view: View,
    /// Addresses of the module's variables.
    pub variables: Vec<u64>,
    pub races: Option<GlobalRaces>,
}

impl Grid<'_> {
    pub(crate) fn threads(&self) -> u32 {
        self.block.iter().product()
    }

    /// Bytes of shared memory of a CTA.
    pub(crate) fn shared_bytes(&self) -> u32 {
        if self.dynamic_shared == 0 {
            self.entry.static_shared_bytes
        } else {
            self.entry.dynamic_shared + self.dynamic_shared
        }
    }

    pub(crate) fn coordinates(&self, cta: u32) -> [u32; 3] {
        let [x, y, _] = self.grid;
        [cta % x, cta / x % y, cta / x / y]
    }
}

/// The state of the CTA that is running. One per worker thread, reset for every CTA.
#[derive(Debug)]
pub(crate) struct Cta<'g> {
    pub grid: &'g Grid<'g>,
    pub kernel: &'g Kernel,
    pub index: u32,
    pub coordinates: [u32; 3],
    pub rng: Rng,
    pub view: View,
    pub shared: Shared,
    /// The sixteen of the CTA, then the cluster's.
    pub barriers: [Barrier; 17],
    pub mbarriers: Mbarriers,
    /// Bulk copies issued and not yet done.
    pub pending: Vec<Pending>,
    /// Per warp: copies in flight, and the count of bulk stores.
    pub copies: Vec<CopyQueue>,
    pub bulk: Vec<BulkQueue>,
    pub races: Option<Races>,
    pub counters: Counters,
    pub warps: Vec<Warp>,
    /// Warps that have not exited.
    pub live_warps: u32,
    /// Counts everything that could let a polling warp go on.
    pub events: u64,
    /// Registers per thread summed over warps, and the pool they come from.
    pub registers_used: u32,
    pub registers_pool: u32,
    /// The operations each warpgroup issued: instruction and descriptors.
    pub warpgroup_log: Vec<Vec<(u32, u64, u64)>>,
    pub matrices: Matrices,
    pub tensor_memory: TensorMemory,
}

impl<'g> Cta<'g> {
    pub(crate) fn new(grid: &'g Grid<'g>) -> Self {
        let mut counters = Counters::default();
        if grid.options.record_coverage {
            counters.coverage = Coverage::of(grid.kernel.code.len());
        }
        Self {
            grid,
            kernel: &grid.kernel,
            index: 0,
            coordinates: [0; 3],
            rng: Rng::new(0),
            view: grid.view.clone(),
            shared: Shared::default(),
            barriers: Default::default(),
            mbarriers: Mbarriers::default(),
            pending: Vec::new(),
            copies: Vec::new(),
            bulk: Vec::new(),
            races: None,
            counters,
            warps: Vec::new(),
            live_warps: 0,
            events: 0,
            registers_used: 0,
            registers_pool: 0,
            warpgroup_log: Vec::new(),
            matrices: Matrices::default(),
            tensor_memory: TensorMemory::default(),
        }
    }

    /// Makes this the CTA of linear index `index`.
    pub(crate) fn reset(&mut self, index: u32) {
        let grid = self.grid;
        let options = &grid.options;
        self.index = index;
        self.coordinates = grid.coordinates(index);
        // Each CTA has a stream of its own, so that its run does not depend on which thread runs it.
        self.rng = Rng::new(options.seed ^ u64::from(index).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        self.shared.reset(grid.shared_bytes() as usize, options.check_initialised);
        self.barriers = Default::default();
        self.mbarriers.clear();
        self.pending.clear();
        self.tensor_memory.reset(options.check_initialised);
        self.events = 0;
        let threads = grid.threads();
        let warps = threads.div_ceil(32);
        self.races = options.check_races.then(|| Races::new(warps as usize, self.shared.len()));
        self.copies.clear();
        self.copies.resize_with(warps as usize, CopyQueue::default);
        self.bulk.clear();
        self.bulk.resize_with(warps as usize, BulkQueue::default);
        let mut list = std::mem::take(&mut self.warps);
        list.resize_with(warps as usize, Warp::default);
        self.warpgroup_log = vec![Vec::new(); warps.div_ceil(4) as usize];
        let per_thread = self.registers_at_launch(threads);
        self.registers_used = per_thread * warps;
        for (id, warp) in list.iter_mut().enumerate() {
            let lanes = (threads - 32 * id as u32).min(32);
            self.reset_warp(warp, id as u32, lanes, per_thread);
        }
        self.warps = list;
        self.live_warps = warps;
        self.counters.ctas += 1;
    }

    /// Registers per thread at launch, in `setmaxnreg`'s units of eight: as many as the bounds in the PTX leave, which is
    /// what ptxas gives a kernel that uses `setmaxnreg`. What its warps have then is all that they can ever share: a
    /// remainder of the multiprocessor's registers is out of their reach.
    fn registers_at_launch(&mut self, threads: u32) -> u32 {
        let entry = self.grid.entry;
        let bound = entry.reqntid.or(entry.maxntid).map_or(threads, |extents| extents.iter().product());
        let per_cta = 65536 / entry.minnctapersm.unwrap_or(1).max(1);
        let per_thread = (per_cta / bound.next_multiple_of(32)).min(255) / 8 * 8;
        self.registers_pool = per_thread * threads.div_ceil(32);
        per_thread
    }

    fn reset_warp(&mut self, warp: &mut Warp, id: u32, lanes: u32, per_thread: u32) {
        let kernel = self.kernel;
        warp.id = id;
        warp.regs.reset(kernel);
        warp.local.reset(kernel.local_bytes, self.grid.options.check_initialised);
        warp.pc = 0;
        warp.live = if lanes == 32 { !0 } else { (1 << lanes) - 1 };
        warp.active = warp.live;
        warp.others.clear();
        warp.carry = 0;
        warp.register_count = per_thread;
        warp.wgmma.reset(kernel.words);
        warp.loading.reset(kernel.words);
        warp.cluster_generation = 0;
        warp.polled = None;
        warp.unwritten.clear();
        warp.unwritten.resize(kernel.followed, !0);
        for preload in &kernel.preloads {
            let value = self.special(preload.register, id);
            match preload.class {
                RegClass::Word => warp.regs.set_word(preload.slot, !0, &map(&value, |v| v as u32)),
                RegClass::Wide => warp.regs.set_wide(preload.slot, !0, &value),
                RegClass::Pred => {}
            }
        }
    }

    /// A special register's value in each lane of a warp.
    fn special(&self, register: SpecialRegister, warp: u32) -> [u64; 32] {
        let grid = self.grid;
        let [bx, by, _] = grid.block;
        let axis = |extents: &[u32; 3], axis: u8| u64::from(extents[axis as usize]);
        std::array::from_fn(|lane| {
            let thread = warp * 32 + lane as u32;
            let tid = [thread % bx, thread / bx % by, thread / bx / by];
            match register {
                SpecialRegister::Tid(a) => axis(&tid, a),
                SpecialRegister::Ntid(a) => axis(&grid.block, a),
                SpecialRegister::Ctaid(a) | SpecialRegister::ClusterId(a) => axis(&self.coordinates, a),
                SpecialRegister::Nctaid(a) | SpecialRegister::NClusterId(a) => axis(&grid.grid, a),
                SpecialRegister::LaneId => lane as u64,
                SpecialRegister::WarpId => u64::from(warp),
                SpecialRegister::NWarpId => u64::from(grid.threads().div_ceil(32)),
                SpecialRegister::LaneMask(mask) => {
                    let eq = 1u64 << lane;
                    match mask {
                        LaneMask::Eq => eq,
                        LaneMask::Lt => eq - 1,
                        LaneMask::Le => 2 * eq - 1,
                        LaneMask::Gt => !(2 * eq - 1) & 0xffff_ffff,
                        LaneMask::Ge => !(eq - 1) & 0xffff_ffff,
                    }
                }
                SpecialRegister::DynamicSharedBytes => u64::from(grid.dynamic_shared),
                SpecialRegister::TotalSharedBytes => u64::from(grid.shared_bytes()),
                SpecialRegister::Zero => 0,
                SpecialRegister::One => 1,
                SpecialRegister::GlobalVariable(i, offset) => {
                    grid.variables.get(i as usize).copied().unwrap_or(0).wrapping_add(offset as u64)
                }
            }
        })
    }

    /// Where shared memory ends.
    pub(crate) fn shared_end(&self) -> u64 {
        u64::from(SHARED_BASE) + self.shared.len() as u64
    }
}
