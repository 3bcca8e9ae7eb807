//! Operands: exchanged, another parameter's in place of one, another special register.

use super::site::{Place, Site};
use crate::inst::*;
use crate::module::Kernel;
use crate::ptx::ast::RegClass;

/// The scalar parameters that a kernel reads: offset and bytes, in order.
pub(super) fn parameters(kernel: &Kernel) -> Vec<(i64, u8)> {
    let read = kernel.code.iter().filter_map(|inst| match inst.op {
        Op::Load(access) if access.space == Space::Param && access.count == 1 => {
            Some((address(kernel, inst)? + inst.imm, access.bytes))
        }
        _ => None,
    });
    let mut all: Vec<(i64, u8)> = read.collect();
    all.sort_unstable();
    all.dedup();
    all
}

/// Where the address of a parameter begins, if it is one by name.
fn address(kernel: &Kernel, inst: &Inst) -> Option<i64> {
    (inst.a & CONST != 0).then(|| kernel.constants.wides[(inst.a ^ CONST) as usize][0] as i64)
}

pub(super) fn edits(site: &mut Site, parameters: &[(i64, u8)]) {
    swap(site);
    other_parameter(site, parameters);
    special_registers(site);
}

fn swap(site: &mut Site) {
    const NAME: &str = "operands swapped";
    let differ = |a: Slot, b: Slot| a != b && a != NONE && b != NONE;
    let Inst { a, b, c, .. } = *site.inst;
    match site.inst.op {
        Op::Int2(op, _) => {
            use Int2::{DivS, DivU, RemS, RemU, Shl, ShrS, ShrU, Sub};
            let ordered = matches!(op, Sub | Shl | ShrU | ShrS | DivU | DivS | RemU | RemS);
            if ordered && differ(a, b) {
                site.change(NAME, "first and second", |inst| (inst.a, inst.b) = (b, a));
            }
        }
        Op::Float2(Float2::Sub | Float2::Div, _) | Op::Half2(Float2::Sub, _) | Op::ConvertPair { .. }
            if differ(a, b) =>
        {
            site.change(NAME, "first and second", |inst| (inst.a, inst.b) = (b, a));
        }
        Op::Selp32 | Op::Selp64 if differ(a, b) => {
            site.change(NAME, "first and second", |inst| (inst.a, inst.b) = (b, a));
        }
        Op::Int3(Int3::MadLo | Int3::ShfL { .. } | Int3::ShfR { .. }, _) | Op::Fma(_) | Op::HalfFma(_)
            if differ(b, c) =>
        {
            site.change(NAME, "second and third", |inst| (inst.b, inst.c) = (c, b));
        }
        Op::Int3(Int3::Prmt, _) if differ(a, b) => {
            site.change(NAME, "first and second", |inst| (inst.a, inst.b) = (b, a));
        }
        Op::Wgmma(wgmma) if !wgmma.a_in_registers && differ(a, b) => {
            site.change(NAME, "the two matrices", |inst| (inst.a, inst.b) = (b, a));
        }
        Op::Tcgen05(Tcgen05::Mma(mma)) if !mma.a_in_tensor_memory && differ(a, b) => {
            site.change(NAME, "the two matrices", |inst| (inst.a, inst.b) = (b, a));
        }
        Op::Pack32 | Op::Unpack32 | Op::Pack64 | Op::Unpack64 => swap_in_list(site, NAME, 0, 1),
        Op::Load(access) | Op::Store(access) if access.count > 1 => swap_in_list(site, NAME, 0, 1),
        Op::LdMatrix { .. } | Op::StMatrix { .. } if site.list().len() > 1 => swap_in_list(site, NAME, 0, 1),
        Op::Mma(mma) => {
            // D, A, B, C: two registers of A, and the two of B.
            let accumulators = if mma.half_accumulators { 2 } else { 4 };
            let of_b = (site.list().len() - 2 * accumulators) / 3;
            swap_in_list(site, NAME, accumulators, accumulators + 1);
            if of_b == 2 {
                swap_in_list(site, NAME, accumulators + 4, accumulators + 5);
            }
        }
        Op::Bulk(bulk) if bulk.rank > 1 => swap_in_list(site, NAME, 0, 1),
        _ => {}
    }
}

fn swap_in_list(site: &mut Site, name: &'static str, first: usize, second: usize) {
    let mut list = site.list().to_vec();
    list.swap(first, second);
    site.other_list(name, &format!("vector elements {first} and {second}"), list);
}

/// The parameters of the same size before and behind, such as another tensor's stride.
fn other_parameter(site: &mut Site, parameters: &[(i64, u8)]) {
    let Op::Load(access) = site.inst.op else { return };
    let Some(base) = address(site.kernel, site.inst) else { return };
    if access.space != Space::Param || access.count != 1 {
        return;
    }
    let own = base + site.inst.imm;
    let alike: Vec<i64> = parameters.iter().filter(|p| p.1 == access.bytes).map(|p| p.0).collect();
    let Some(at) = alike.iter().position(|&offset| offset == own) else { return };
    for other in [at.checked_sub(1), Some(at + 1)].into_iter().flatten() {
        if let Some(&offset) = alike.get(other) {
            site.change("other parameter", format!("that at {offset}"), |inst| inst.imm += offset - own);
        }
    }
}

/// Where a special register is read: zero, and the next one of the kernel.
fn special_registers(site: &mut Site) {
    let places: &[Place] = match site.inst.op {
        Op::Mov32 | Op::Int1(..) | Op::Convert(_) => &[Place::A],
        Op::Int2(_, ty) if ty != IntTy::W64 => &[Place::A, Place::B],
        Op::MulWide { .. } => &[Place::A, Place::B],
        Op::Int3(_, ty) if ty != IntTy::W64 => &[Place::A, Place::B, Place::C],
        Op::Setp { ty, .. } if !ty.is_wide() => &[Place::A, Place::B],
        _ => &[],
    };
    let words: Vec<_> = site.kernel.preloads.iter().filter(|p| p.class == RegClass::Word).collect();
    for &place in places {
        let Some(at) = words.iter().position(|preload| preload.slot == site.slot(place)) else { continue };
        site.put("special register", "zero", place, (RegClass::Word, 0));
        let other = words[(at + 1) % words.len()];
        if other.slot != words[at].slot {
            let change = site.with_slot(place, other.slot);
            site.add("special register", format!("{:?}", other.register).to_lowercase(), change);
        }
    }
}
