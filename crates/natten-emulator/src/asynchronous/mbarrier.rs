//! mbarrier objects: phases that complete when all arrivals and all expected bytes are in.

use crate::fault::{Accessor, Actor, Exec, FaultKind, MbarrierProblem, WaitReason};
use crate::inst::{Inst, Mbar, NONE};
use crate::machine::cta::Cta;
use crate::machine::execute::Flow;
use crate::machine::warp::Warp;
use crate::race::{AccessKind, Edge};

/// Arrival and transaction counts stay below this in magnitude.
const LIMIT: i64 = (1 << 20) - 1;

#[derive(Debug)]
pub(crate) struct Mbarrier {
    address: u32,
    /// Arrivals per phase.
    count: i64,
    /// Arrivals this phase still needs.
    pending: i64,
    /// Bytes this phase still expects; below zero when they came before they were expected.
    bytes: i64,
    /// Phases completed.
    phase: u32,
    /// Who initialised it, until a fence shows that to the asynchronous proxy.
    unfenced: Option<u32>,
    gathering: Edge,
    released: Edge,
}

/// The mbarriers of a CTA.
#[derive(Debug, Default)]
pub(crate) struct Mbarriers {
    list: Vec<Mbarrier>,
}

fn problem(address: u32, problem: MbarrierProblem) -> FaultKind {
    FaultKind::Mbarrier { address: address.into(), problem }
}

impl Mbarriers {
    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    pub(crate) fn get(&mut self, address: u32) -> Result<&mut Mbarrier, FaultKind> {
        let found = self.list.iter_mut().find(|b| b.address == address);
        found.ok_or_else(|| problem(address, MbarrierProblem::NotInitialised))
    }

    fn init(&mut self, address: u32, count: u32, warp: u32) -> Result<(), FaultKind> {
        if count == 0 || i64::from(count) > LIMIT {
            return Err(problem(address, MbarrierProblem::CountOutOfRange));
        }
        if self.list.iter().any(|b| b.address == address) {
            return Err(problem(address, MbarrierProblem::AlreadyInitialised));
        }
        let count = i64::from(count);
        self.list.push(Mbarrier {
            address,
            count,
            pending: count,
            bytes: 0,
            phase: 0,
            unfenced: Some(warp),
            gathering: Edge::default(),
            released: Edge::default(),
        });
        Ok(())
    }

    fn inval(&mut self, address: u32) -> Result<(), FaultKind> {
        self.get(address)?;
        self.list.retain(|b| b.address != address);
        Ok(())
    }

    /// `warp` executed a fence that shows its initialisations to the asynchronous proxy.
    pub(crate) fn fence_init(&mut self, warp: u32) {
        for barrier in &mut self.list {
            if barrier.unfenced == Some(warp) {
                barrier.unfenced = None;
            }
        }
    }

    pub(crate) fn wait_reason(&self, address: u32) -> WaitReason {
        let barrier = self.list.iter().find(|b| b.address == address);
        let (pending_arrivals, pending_bytes) = barrier.map_or((0, 0), |b| (b.pending, b.bytes));
        WaitReason::Mbarrier { address, pending_arrivals, pending_bytes }
    }
}

impl Mbarrier {
    /// Phases completed so far, the number of the current one.
    pub(crate) fn phase(&self) -> u32 {
        self.phase
    }

    pub(crate) fn gathering(&mut self) -> &mut Edge {
        &mut self.gathering
    }

    pub(crate) fn unfenced(&self) -> Option<u32> {
        self.unfenced
    }

    pub(crate) fn expect(&mut self, bytes: i64) -> Result<(), FaultKind> {
        self.bytes += bytes;
        if self.bytes.abs() > LIMIT {
            return Err(problem(self.address, MbarrierProblem::TransactionOutOfRange));
        }
        Ok(())
    }

    /// Adds arrivals that this phase will need besides its count.
    pub(crate) fn add_pending(&mut self, count: i64) {
        self.pending += count;
    }

    pub(crate) fn arrive(&mut self, count: i64) -> Result<(), FaultKind> {
        self.pending -= count;
        if self.pending < 0 {
            return Err(problem(self.address, MbarrierProblem::ArrivalUnderflow));
        }
        self.advance();
        Ok(())
    }

    /// Bytes arrived.
    pub(crate) fn complete_bytes(&mut self, bytes: i64) -> Result<(), FaultKind> {
        self.expect(-bytes)?;
        self.advance();
        Ok(())
    }

    fn advance(&mut self) {
        if self.pending == 0 && self.bytes == 0 {
            self.phase += 1;
            self.pending = self.count;
            self.released = std::mem::take(&mut self.gathering);
        }
    }
}

impl Cta<'_> {
    pub(crate) fn mbarrier(&mut self, w: &mut Warp, i: &Inst, m: u32, kind: Mbar, wide: bool) -> Exec<Flow> {
        if kind == Mbar::PendingCount {
            let tokens = w.regs.wide(i.c);
            let value = crate::scalar::map(tokens, |t| t as u32 & LIMIT as u32);
            w.regs.set_word(i.d, m, &value);
            return Ok(Flow::Next);
        }
        let addresses = self.shared_addresses(w, i.a, wide, i.imm);
        if let Mbar::Wait { parity } = kind {
            return self.mbarrier_wait(w, i, m, &addresses, parity);
        }
        let mut tokens = [0u64; 32];
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let operand = if i.b == NONE { 1 } else { w.regs.word(i.b)[lane] };
            tokens[lane] =
                self.mbarrier_lane(w, lane, addresses[lane], operand, kind).map_err(|mut trap| {
                    trap.lane = trap.lane.or(Some(lane as u32));
                    trap
                })?;
        }
        self.events += 1;
        w.regs.set_wide(i.d, m, &tokens);
        Ok(Flow::Next)
    }

    /// One lane's operation; returns the state token of an arrival.
    fn mbarrier_lane(&mut self, w: &Warp, lane: usize, address: u64, operand: u32, kind: Mbar) -> Exec<u64> {
        let offset = self.shared.offset(address, 8, 8)?;
        if let Some(races) = &mut self.races {
            let access =
                if matches!(kind, Mbar::Init | Mbar::Inval) { AccessKind::Write } else { AccessKind::Atomic };
            races.by_lane(w.id, lane, offset, 8, access)?;
        }
        let address = address as u32;
        match kind {
            Mbar::Init => {
                self.mbarriers.init(address, operand, w.id)?;
                // Opaque, but no longer uninitialised.
                self.shared.put(offset, &[0; 8]);
                return Ok(0);
            }
            Mbar::Inval => {
                self.mbarriers.inval(address)?;
                return Ok(0);
            }
            _ => {}
        }
        let barrier = self.mbarriers.get(address)?;
        let token = u64::from(barrier.phase) << 32 | barrier.pending as u64;
        match kind {
            Mbar::Arrive { expect, drop, .. } => {
                if let Some(races) = &mut self.races {
                    races.release(w.id, 1 << lane, w.live, &mut barrier.gathering);
                }
                if expect {
                    barrier.expect(i64::from(operand))?;
                }
                let count = if expect { 1 } else { i64::from(operand) };
                if drop {
                    barrier.count -= count;
                }
                barrier.arrive(count)?;
            }
            Mbar::ExpectTx => barrier.expect(i64::from(operand))?,
            Mbar::CompleteTx => barrier.complete_bytes(i64::from(operand))?,
            Mbar::Init | Mbar::Inval | Mbar::Wait { .. } | Mbar::PendingCount => {}
        }
        Ok(token)
    }

    fn mbarrier_wait(
        &mut self,
        w: &mut Warp,
        i: &Inst,
        m: u32,
        addresses: &[u64; 32],
        parity: bool,
    ) -> Exec<Flow> {
        // A wait may fail for no reason; rarely, so that runs stay short.
        let spurious = self.grid.options.completion == crate::Completion::Random && self.rng.below(16) == 0;
        let mut done = 0u32;
        let mut last = None;
        for lane in (0..32).filter(|l| m >> l & 1 == 1) {
            let address = addresses[lane];
            let offset = self.shared.offset(address, 8, 8).map_err(|k| k.lane(lane))?;
            let key = (
                address,
                if parity { u64::from(w.regs.word(i.c)[lane] & 1) } else { w.regs.wide(i.c)[lane] },
            );
            if let Some((previous, complete)) = last
                && previous == key
            {
                done |= u32::from(complete) << lane;
                continue;
            }
            if let Some(races) = &mut self.races {
                races.by_lane(w.id, lane, offset, 8, AccessKind::Atomic)?;
            }
            let barrier = self.mbarriers.get(address as u32).map_err(|k| k.lane(lane))?;
            let complete = if parity {
                u64::from(barrier.phase & 1) != key.1
            } else {
                match u64::from(barrier.phase).checked_sub(key.1 >> 32) {
                    Some(0) => false,
                    Some(1) => true,
                    _ => return Err(problem(address as u32, MbarrierProblem::StalePhase).lane(lane)),
                }
            } && !spurious;
            if complete {
                if let Some(races) = &mut self.races {
                    races.acquire(w.id, &barrier.released);
                }
            } else {
                w.polled = Some((address as u32, w.pc));
            }
            done |= u32::from(complete) << lane;
            last = Some((key, complete));
        }
        w.regs.set_pred(i.d, m, done);
        if done == m {
            w.polled = None;
            return Ok(Flow::Next);
        }
        Ok(Flow::Yield)
    }

    /// The mbarrier a bulk copy completes on must be visible to the asynchronous proxy.
    pub(crate) fn mbarrier_for_proxy(&mut self, address: u32) -> Result<(), FaultKind> {
        let checked = self.races.is_some();
        match self.mbarriers.get(address)?.unfenced() {
            Some(warp) if checked => Err(FaultKind::MissingProxyFence {
                address: address.into(),
                current: Accessor { actor: Actor::BulkLoad(address), is_write: true },
                previous: Accessor { actor: Actor::Warp(warp), is_write: true },
            }),
            _ => Ok(()),
        }
    }
}
