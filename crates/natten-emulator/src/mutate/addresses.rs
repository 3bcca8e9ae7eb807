//! 64-bit sums and products that end as addresses of shared memory, of which there are fewer than 2^18: cut to 32 bits they stay
//! what they are.

use super::widths::wide;
use super::{Edit, operators};
use crate::inst::*;
use crate::module::Kernel;

/// Uses and definitions followed behind one another.
const DEPTH: u32 = 6;
/// No address in shared memory is as large.
const SHARED_END: i64 = 1 << 24;

/// Why a result that is cut to 32 bits is the same, if what becomes of it tells.
pub(super) fn proof(kernel: &Kernel, edit: &Edit) -> Option<String> {
    if edit.operator != operators::NARROW {
        return None;
    }
    let [result, ..] = kernel.origin.slots[edit.instruction];
    let is_address = result != NONE && is_of_shared(kernel, result, DEPTH);
    is_address.then(|| "all it is used for are addresses in shared memory".to_owned())
}

/// Whether all that reads a register takes it for an address in shared memory, or adds to it what is known to be small and does so.
/// Then, the address being one, it is no further from 0 than both are.
fn is_of_shared(kernel: &Kernel, slot: Slot, depth: u32) -> bool {
    let readers = &kernel.origin.readers[slot as usize];
    depth > 0
        && !readers.is_empty()
        && readers.iter().all(|&at| {
            let (inst, [d, a, b, _]) = (&kernel.code[at as usize], kernel.origin.slots[at as usize]);
            // One that is stored as well is read twice.
            let is_once = readers.iter().filter(|&&other| other == at).count() == 1;
            let is_small = |slot: Slot| {
                wide(kernel, slot, depth)
                    .is_some_and(|range| range.low > -SHARED_END && range.high < SHARED_END)
            };
            match inst.op {
                Op::Load(access) | Op::Store(access) => {
                    is_once && a == slot && access.space == Space::Shared && inst.imm.abs() < SHARED_END
                }
                Op::Int2(Int2::Add, IntTy::W64) => {
                    let other = if a == slot { b } else { a };
                    is_once
                        && (a == slot || b == slot)
                        && is_small(other)
                        && is_of_shared(kernel, d, depth - 1)
                }
                // The lower half alone.
                Op::Convert(convert) => a == slot && convert.to == Ty::U32 && !convert.sat,
                _ => false,
            }
        })
}

#[cfg(test)]
mod tests {
    use crate::Module;

    const TEXT: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.extern .shared .align 16 .b8 memory[];\n\
        .visible .entry k(.param .u64 out, .param .u32 n)\n{\n\
        .reg .b32 %r<16>; .reg .b64 %rd<16>;\n\
        ld.param.u64 %rd1, [out];\n ld.param.u32 %r1, [n];\n mov.u32 %r2, %tid.x;\n mov.u64 %rd2, memory;\n\
        mul.wide.s32 %rd3, %r1, 4;\n add.s64 %rd4, %rd2, %rd3;\n st.shared.u32 [%rd4+16], %r1;\n\
        mul.wide.s32 %rd5, %r1, 4;\n add.s64 %rd6, %rd1, %rd5;\n st.global.u32 [%rd6], %r1;\n\
        mul.wide.u32 %rd7, %r2, 24;\n add.s64 %rd8, %rd1, %rd7;\n st.global.u64 [%rd8], %rd8;\n\
        add.s64 %rd9, %rd2, %rd5;\n st.shared.u64 [%rd9], %rd9;\n ret;\n}\n";

    fn is_proven(instruction: usize) -> bool {
        let module = Module::parse(TEXT).expect("it parses");
        let mut edits = module.edits("k").into_iter();
        let own = |edit: &super::Edit| edit.instruction == instruction && edit.operator == "narrow address";
        module.proof("k", &edits.find(own).expect("a wide result")).is_some()
    }

    #[test]
    fn addresses_in_shared_memory_fit_a_word() {
        assert!(is_proven(4) && is_proven(5), "an index and its address");
        assert!(is_proven(10), "a thread's own place, whatever becomes of it");
    }

    #[test]
    fn those_in_global_memory_do_not() {
        assert!(!is_proven(7) && !is_proven(8) && !is_proven(11));
        assert!(!is_proven(13), "an address that is stored");
    }
}
