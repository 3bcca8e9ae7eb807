//! Decoding of exchange between lanes, barriers, fences and cluster queries.

use super::modifiers::Modifiers;
use super::{Decoded, Decoder, unsupported};
use crate::counters::Class;
use crate::inst::*;
use crate::ptx::ast::{Operand, RegClass};

type Ops<'o> = &'o [Operand];

impl Decoder<'_> {
    pub(super) fn collective(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<bool> {
        match base {
            "shfl" => self.shfl(m, o)?,
            "vote" => self.vote(m, o)?,
            "match" => self.match_sync(m, o)?,
            "activemask" => {
                m.ty()?;
                let d = self.result_word(o, 0)?;
                self.emit(Op::ActiveMask, Class::Collective, [d, NONE, NONE, NONE], 0, &[]);
            }
            "redux" => self.redux(m, o)?,
            "elect" => {
                m.require("sync")?;
                let (d, p) = match o.first() {
                    Some(Operand::Pair(d, p)) => {
                        let d = self.destination(d, 0, RegClass::Word)?;
                        (d, self.destination(p, 0, RegClass::Pred)?)
                    }
                    _ => return super::wrong(0, "a pair d|p"),
                };
                let a = self.word(o, 1)?;
                self.emit(Op::Elect, Class::Collective, [d, a, NONE, NONE], 0, &[p]);
            }
            "bar" | "barrier" => self.bar(base, m, o)?,
            "membar" => {
                if m.find(|p| matches!(p, "cta" | "gl" | "sys").then_some(())).is_none() {
                    return unsupported("membar of this scope");
                }
                self.emit(Op::Fence(Fence::Memory), Class::Sync, [NONE; 4], 0, &[]);
            }
            "fence" => self.fence(m)?,
            "nanosleep" => {
                m.ty()?;
                self.word(o, 0)?;
                self.emit(Op::Nanosleep, Class::Sync, [NONE; 4], 0, &[]);
            }
            "griddepcontrol" => {
                if !m.take("wait") {
                    m.require("launch_dependents")?;
                }
                self.emit(Op::Nop, Class::Sync, [NONE; 4], 0, &[]);
            }
            "mapa" => {
                m.take("shared::cluster");
                let wide = m.ty()?.is_wide();
                let slots = if wide {
                    [self.result_wide(o, 0)?, self.wide(o, 1)?, self.word(o, 2)?, NONE]
                } else {
                    [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, NONE]
                };
                self.emit(Op::Mapa { wide }, Class::Integer, slots, 0, &[]);
            }
            "getctarank" => {
                m.take("shared::cluster");
                let wide = m.ty()?.is_wide();
                let a = if wide { self.wide(o, 1)? } else { self.word(o, 1)? };
                let d = self.result_word(o, 0)?;
                self.emit(Op::GetCtaRank { wide }, Class::Integer, [d, a, NONE, NONE], 0, &[]);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn shfl(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("sync")?;
        let mode = m.find(|p| {
            Some(match p {
                "up" => Shuffle::Up,
                "down" => Shuffle::Down,
                "bfly" => Shuffle::Butterfly,
                "idx" => Shuffle::Index,
                _ => return None,
            })
        });
        let Some(mode) = mode else { return unsupported("shfl without a mode") };
        m.require("b32")?;
        self.arity(o, 5)?;
        let (d, p) = match &o[0] {
            Operand::Pair(d, p) => {
                let d = self.destination(d, 0, RegClass::Word)?;
                (d, self.destination(p, 0, RegClass::Pred)?)
            }
            operand => (self.destination(operand, 0, RegClass::Word)?, NONE),
        };
        let (a, b, c) = (self.word(o, 1)?, self.word(o, 2)?, self.word(o, 3)?);
        let mask = self.word(o, 4)?;
        self.emit(Op::Shfl(mode), Class::Collective, [d, a, b, c], 0, &[p, mask]);
        Ok(())
    }

    fn vote(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("sync")?;
        let vote = m.find(|p| {
            Some(match p {
                "all" => Vote::All,
                "any" => Vote::Any,
                "uni" => Vote::Uniform,
                "ballot" => Vote::Ballot,
                _ => return None,
            })
        });
        let Some(vote) = vote else { return unsupported("vote without a mode") };
        m.ty()?;
        self.arity(o, 3)?;
        let d = if vote == Vote::Ballot { self.result_word(o, 0)? } else { self.result_pred(o, 0)? };
        let (a, negated) = self.pred(o, 1)?;
        let b = self.word(o, 2)?;
        self.emit(Op::Vote(vote), Class::Collective, [d, a, b, NONE], i64::from(negated), &[]);
        Ok(())
    }

    fn match_sync(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let all = m.take("all");
        if !all {
            m.require("any")?;
        }
        m.require("sync")?;
        let wide = m.ty()?.is_wide();
        self.arity(o, 3)?;
        let (d, p) = match &o[0] {
            Operand::Pair(d, p) if all => {
                let d = self.destination(d, 0, RegClass::Word)?;
                (d, self.destination(p, 0, RegClass::Pred)?)
            }
            operand => (self.destination(operand, 0, RegClass::Word)?, NONE),
        };
        let a = if wide { self.wide(o, 1)? } else { self.word(o, 1)? };
        let b = self.word(o, 2)?;
        let op = if all { Op::MatchAll { wide } } else { Op::MatchAny { wide } };
        self.emit(op, Class::Collective, [d, a, b, NONE], 0, &[p]);
        Ok(())
    }

    fn redux(&mut self, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        m.require("sync")?;
        let name =
            m.find(|p| matches!(p, "add" | "min" | "max" | "and" | "or" | "xor").then(|| p.to_owned()));
        let ty = m.ty()?;
        if ty.bytes() != 4 || ty.is_float() {
            return unsupported("redux of this type");
        }
        let op = match (name.as_deref(), ty.is_signed()) {
            (Some("add"), _) => Redux::Add,
            (Some("min"), true) => Redux::MinS,
            (Some("min"), false) => Redux::MinU,
            (Some("max"), true) => Redux::MaxS,
            (Some("max"), false) => Redux::MaxU,
            (Some("and"), _) => Redux::And,
            (Some("or"), _) => Redux::Or,
            (Some("xor"), _) => Redux::Xor,
            _ => return unsupported("redux without an operation"),
        };
        let slots = [self.result_word(o, 0)?, self.word(o, 1)?, self.word(o, 2)?, NONE];
        self.emit(Op::Redux(op), Class::Collective, slots, 0, &[]);
        Ok(())
    }

    fn bar(&mut self, base: &str, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        if m.take("cluster") {
            return self.cluster_barrier(m);
        }
        m.take("cta");
        let aligned = m.take("aligned") || base == "bar";
        if m.take("warp") {
            m.require("sync")?;
            let a = self.word(o, 0)?;
            self.emit(Op::WarpSync, Class::Sync, [NONE, a, NONE, NONE], 0, &[]);
            return Ok(());
        }
        if m.take("red") {
            return self.bar_red(aligned, m, o);
        }
        let kind = if m.take("arrive") { BarKind::Arrive } else { BarKind::Sync };
        if kind == BarKind::Sync {
            m.require("sync")?;
        }
        let a = self.word(o, 0)?;
        let b = if o.len() > 1 { self.word(o, 1)? } else { NONE };
        if kind == BarKind::Arrive && b == NONE {
            return super::wrong(1, "a thread count");
        }
        self.emit(Op::Bar(Bar { kind, aligned }), Class::Sync, [NONE, a, b, NONE], 0, &[]);
        Ok(())
    }

    /// `bar.red.op.type d, a[, b], c`
    fn bar_red(&mut self, aligned: bool, m: &mut Modifiers, o: Ops) -> Decoded<()> {
        let kind = if m.take("popc") {
            BarKind::Popc
        } else if m.take("and") {
            BarKind::And
        } else {
            m.require("or")?;
            BarKind::Or
        };
        m.ty()?;
        let d = if kind == BarKind::Popc { self.result_word(o, 0)? } else { self.result_pred(o, 0)? };
        let a = self.word(o, 1)?;
        let b = if o.len() > 3 { self.word(o, 2)? } else { NONE };
        let (c, negated) = self.pred(o, o.len().saturating_sub(1).max(2))?;
        let op = Op::Bar(Bar { kind, aligned });
        self.emit(op, Class::Sync, [d, a, b, c], i64::from(negated), &[]);
        Ok(())
    }

    fn cluster_barrier(&mut self, m: &mut Modifiers) -> Decoded<()> {
        m.take("aligned");
        let op = if m.take("arrive") {
            m.take("release");
            m.take("relaxed");
            Op::ClusterArrive
        } else {
            m.require("wait")?;
            m.take("acquire");
            Op::ClusterWait
        };
        self.emit(op, Class::Sync, [NONE; 4], 0, &[]);
        Ok(())
    }

    fn fence(&mut self, m: &mut Modifiers) -> Decoded<()> {
        let scope = |m: &mut Modifiers| m.take("cta") | m.take("cluster") | m.take("gpu") | m.take("sys");
        let kind = if m.take("proxy") {
            let async_proxy = m.find(|p| p.starts_with("async").then_some(())).is_some();
            m.find(super::memory::state_space);
            if async_proxy {
                Fence::ProxyAsync
            } else if m.take("alias") {
                Fence::Other
            } else if m.take("tensormap::generic") {
                // The tensor map's address follows for acquire; nothing here modifies maps on the device.
                let _ = m.take("acquire") | m.take("release");
                scope(m);
                Fence::Other
            } else {
                return unsupported("fence of this proxy");
            }
        } else if m.take("mbarrier_init") {
            m.require("release")?;
            m.require("cluster")?;
            Fence::MbarrierInit
        } else {
            let _ = m.take("sc") | m.take("acq_rel") | m.take("acquire") | m.take("release");
            m.take("sync_restrict::shared::cluster");
            m.take("sync_restrict::shared::cta");
            scope(m);
            Fence::Memory
        };
        self.emit(Op::Fence(kind), Class::Sync, [NONE; 4], 0, &[]);
        Ok(())
    }
}
