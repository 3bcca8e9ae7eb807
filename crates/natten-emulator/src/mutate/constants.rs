//! Literals: integers off by one, doubled, negated, zero; floats doubled, negated, zero; offsets of memory accesses.

use super::site::{Place, Site};
use crate::inst::{Convert, IntTy, Mbar, NONE, Op, Space, Ty};
use crate::ptx::ast::RegClass;

pub(super) fn edits(site: &mut Site) {
    for (place, class) in literals(site) {
        match class {
            RegClass::Word if is_float(site, place) => float(site, place),
            RegClass::Pred => {}
            _ => integer(site, place, class),
        }
    }
    offset(site);
}

/// Operands that may be literals whose value matters as a number.
fn literals(site: &Site) -> Vec<(Place, RegClass)> {
    use Place::{A, B, C};
    use RegClass::{Wide, Word};
    let places: &[(Place, RegClass)] = match site.inst.op {
        Op::Mov64 | Op::Int1(_, IntTy::W64) => &[(A, Wide)],
        Op::Mov32 | Op::Float1(..) | Op::Int1(..) => &[(A, Word)],
        Op::Int2(_, IntTy::W64) | Op::Selp64 => &[(A, Wide), (B, Wide)],
        Op::Int2(..) | Op::Float2(..) | Op::Half2(..) | Op::Selp32 | Op::MulWide { .. } | Op::Bmsk { .. } => {
            &[(A, Word), (B, Word)]
        }
        Op::Int3(_, IntTy::W64) => &[(A, Wide), (B, Wide), (C, Wide)],
        Op::Int3(..) | Op::Fma(_) | Op::HalfFma(_) => &[(A, Word), (B, Word), (C, Word)],
        Op::BfeU(_) | Op::BfeS(_) => &[(B, Word), (C, Word)],
        Op::MadWide { ty: IntTy::W32, .. } => &[(A, Word), (B, Word), (C, Wide)],
        Op::Shift64(_) => &[(B, Word)],
        Op::Setp { ty, .. } | Op::Set { ty, .. } if ty.is_wide() => &[(A, Wide), (B, Wide)],
        Op::Setp { .. } | Op::Set { .. } => &[(A, Word), (B, Word)],
        Op::Shfl(_) => &[(B, Word), (C, Word)],
        Op::Bar(_) => &[(A, Word), (B, Word)],
        Op::Bfi(_) => &[(Place::List(2), Word), (Place::List(3), Word)],
        Op::Mbarrier(Mbar::Init, _) => &[(B, Word)],
        _ => &[],
    };
    let used = places.iter().filter(|(place, _)| match place {
        Place::List(at) => *at < site.list().len(),
        _ => site.slot(*place) != NONE,
    });
    used.copied().filter(|&(place, class)| site.literal(place, class).is_some()).collect()
}

fn is_float(site: &Site, place: Place) -> bool {
    let of_floats = match site.inst.op {
        Op::Float1(..) | Op::Float2(..) | Op::Fma(_) => true,
        Op::Setp { ty, .. } | Op::Set { ty, .. } => ty == Ty::F32,
        Op::Convert(Convert { from, .. }) => from == Ty::F32,
        _ => false,
    };
    let bits = site.literal(place, RegClass::Word).unwrap_or(0);
    of_floats || site.text().contains(&format!("0f{bits:08X}"))
}

fn integer(site: &mut Site, place: Place, class: RegClass) {
    let operator = match (site.inst.op, place) {
        (Op::Shfl(_), Place::B) => "shuffle lane",
        (Op::Shfl(_), _) => "shuffle mask",
        _ => "integer literal",
    };
    let Some(bits) = site.literal(place, class) else { return };
    let wrap = |value: u64| if class == RegClass::Word { u64::from(value as u32) } else { value };
    let others = [
        (bits.wrapping_add(1), "one more"),
        (bits.wrapping_mul(2), "twice that"),
        (bits.wrapping_neg(), "negative"),
        (0, "zero"),
    ];
    let mut seen = vec![bits];
    for (value, to) in others {
        let value = wrap(value);
        if !seen.contains(&value) {
            seen.push(value);
            site.put(operator, format!("{to}: {}", bits as i32), place, (class, value));
        }
    }
    // A mask of members that lacks the upper lanes.
    if operator == "shuffle mask" && site.list().len() > 1 {
        let members = Place::List(1);
        if site.literal(members, RegClass::Word) == Some(u64::from(u32::MAX)) {
            site.put(operator, "half of the members", members, (RegClass::Word, 0xffff));
        }
    }
}

fn float(site: &mut Site, place: Place) {
    let Some(bits) = site.literal(place, RegClass::Word) else { return };
    let value = f32::from_bits(bits as u32);
    let others: &[(f32, &str)] = if value == 0.0 {
        &[(1.0, "one")]
    } else {
        &[(2.0 * value, "twice that"), (-value, "negative"), (0.0, "zero")]
    };
    for &(other, to) in others {
        if other.to_bits() != bits as u32 {
            let literal = (RegClass::Word, u64::from(other.to_bits()));
            site.put("float literal", format!("{to}: {value}"), place, literal);
        }
    }
}

/// An access beside the one that is meant, by as much as it is aligned to.
fn offset(site: &mut Site) {
    let step = match site.inst.op {
        // Parameters have an operator of their own.
        Op::Load(access) | Op::Store(access) if access.space != Space::Param => {
            i64::from(access.bytes) * i64::from(access.count)
        }
        Op::Atom(atomic) => i64::from(atomic.ty.bytes()),
        Op::LdMatrix { .. } | Op::StMatrix { .. } | Op::CpAsync { .. } => 16,
        Op::Mbarrier(..) => 8,
        Op::Bulk(bulk) if bulk.rank == 0 => 16,
        Op::Bulk(_) => 128,
        _ => return,
    };
    site.change("memory offset", format!("{step} bytes on"), |inst| inst.imm += step);
    site.change("memory offset", format!("{step} bytes before"), |inst| inst.imm -= step);
    if let Op::CpAsync { .. } = site.inst.op
        && let Some(bits) = site.literal(Place::List(0), RegClass::Word)
    {
        let literal = (RegClass::Word, bits + 16);
        site.put("memory offset", "16 bytes on in shared memory", Place::List(0), literal);
    }
}
