//! What a thread block of a kernel on tiles issues beside its tiles: counted, printed for docs/kernels.md, and held.

use natten_core::{Params, bf16};
use natten_cuda::Cuda;
use natten_cuda::Request;
use natten_emulator::{Emulated, Options};

use crate::case::{Case, OnDevice, Operands, forward};

const ENTRY: &str = "natten_forward_sm80_bf16_d128_q128_k64";

/// Multiplications of a warp for one tile: 128 x 64 scores and as many weights, 2048 multiply-adds each, by four warps.
const MMA_A_TILE: u64 = 2 * 128 * 64 * 128 / 2048 / 4;

/// Windows of few keys, where what is not a tile's weighs most, and of many tiles that are each a line of their own. With
/// the PTX instructions of a warp, at most: what was counted plus a tenth.
#[test]
fn a_thread_block_costs_little_beside_its_tiles() {
    println!("problem            tiles a block   instructions a warp");
    let image = Params::new([1, 16, 16]);
    for (name, tokens, params, most) in [
        ("2-D w16", [1, 64, 64], image, 13_800.0),
        ("2-D w16, s8", [1, 64, 64], image.stride([1, 8, 8]), 9_200.0),
        ("2-D w16, s16", [1, 64, 64], image.stride([1, 16, 16]), 6_800.0),
        ("Cosmos, s1,8,16", [16, 24, 32], Params::new([16, 24, 16]).stride([1, 8, 16]), 100_900.0),
    ] {
        let cuda =
            Cuda::new(Emulated::new(8, 0)).with_request(Request { entry: Some(ENTRY), ..Request::default() });
        let plain = Options { check_races: false, check_initialised: false, ..Options::default() };
        cuda.device().set_options(plain);
        let case = Case::new(tokens, params).heads(1, 1).dims(128, 128);
        let operands = Operands::<bf16>::draw(&case);
        forward(&cuda, &operands.problem(&params), &OnDevice::upload(&cuda, &operands)).expect("a launch");
        let counters = cuda.device().take_counters().remove(ENTRY).expect("this kernel ran");
        let warps = (counters.ctas * 4) as f64;
        let tiles = counters.instructions(natten_emulator::Class::Mma) as f64 / warps / MMA_A_TILE as f64;
        let instructions = counters.warp_instructions() as f64 / warps;
        println!("{name:<18} {tiles:>13.1} {instructions:>21.0}");
        assert!(instructions <= most, "{name}: {instructions} instructions a warp");
    }
}
