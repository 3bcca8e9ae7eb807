//! The emulator against hardware: runs the kernels of tests/gpu/truth and compares with what a GPU gave, where a record of
//! one is in the repository, and with the instruction set's documentation where that defines the output.
//!
//! Layouts, copies and integers must agree bit for bit, floats but for the payload of NaN. Approximate functions may
//! differ by what the documentation allows the hardware. Sums of the tensor cores may differ by a share of the sum of
//! magnitudes, since hardware cuts addends off below the largest, and the emulator need not.

#[path = "../../../tests/gpu/truth/mod.rs"]
mod truth;

use std::path::Path;

use natten_emulator::{Completion, Launch, Memory, Module, Options, TensorMapDesc, launch};
use truth::{Arg, Case, Records, TensorMap, kernel};

/// What the emulator refuses and none of our kernels does, by the start of a case's name: conversions that saturate.
const NOT_EMULATED: [&str; 4] =
    ["cvt_f16_satfinite", "cvt_bf16_satfinite", "cvt_bf16x2_satfinite", "cvt_e4m3x2"];

/// What became of a case.
enum Outcome {
    Output(Vec<u8>),
    /// Why it did not run.
    Refused(String),
}

fn run(case: &Case, completion: Completion) -> Outcome {
    let module = match Module::parse(&case.ptx) {
        Ok(module) => module,
        Err(error) => return Outcome::Refused(error.to_string()),
    };
    let memory = Memory::new();
    let mut shape = Launch::new([case.blocks, 1, 1], [case.threads, 1, 1]);
    let mut addresses = Vec::new();
    for arg in &case.args {
        match arg {
            Arg::Input(content) | Arg::Output(content) => {
                let address = memory.alloc(content.len());
                memory.write(address, content).expect("the allocation holds its content");
                addresses.push(address);
                shape = shape.arg(address.to_le_bytes());
            }
            Arg::Value(value) => {
                addresses.push(0);
                shape = shape.arg(value.to_le_bytes());
            }
            Arg::Map { map, buffer } => match encode(map, addresses[*buffer]) {
                Ok(bytes) => shape = shape.arg(bytes),
                Err(why) => return Outcome::Refused(why),
            },
        }
    }
    let options = Options { completion, ..Options::default() };
    if let Err(fault) = launch(&module, kernel::ENTRY, &shape, &memory, &options) {
        return Outcome::Refused(fault.to_string());
    }
    let output = case.args.iter().zip(&addresses).find_map(|(arg, &address)| match arg {
        Arg::Output(content) => Some((content.len(), address)),
        _ => None,
    });
    let (length, address) = output.expect("every case has an output");
    let mut bytes = vec![0; length];
    memory.read(address, &mut bytes).expect("the output is still there");
    Outcome::Output(bytes)
}

fn encode(map: &TensorMap, base: u64) -> Result<Vec<u8>, String> {
    let rank = map.extents.len();
    let mut desc = TensorMapDesc {
        base,
        rank: rank as u32,
        dims: [1; 5],
        strides_bytes: [0; 4],
        box_dims: [1; 5],
        element_strides: [1; 5],
        element_bytes: map.element.size() as u32,
        swizzle: match map.swizzle {
            truth::Swizzle::None => natten_emulator::Swizzle::None,
            truth::Swizzle::B32 => natten_emulator::Swizzle::B32,
            truth::Swizzle::B64 => natten_emulator::Swizzle::B64,
            truth::Swizzle::B128 => natten_emulator::Swizzle::B128,
        },
    };
    desc.dims[..rank].copy_from_slice(&map.extents);
    desc.strides_bytes[..rank - 1].copy_from_slice(&map.strides_bytes);
    desc.box_dims[..rank].copy_from_slice(&map.box_extents);
    desc.element_strides[..rank].copy_from_slice(&map.element_strides);
    desc.check().map(|()| desc.to_bytes().to_vec()).map_err(|error| error.to_string())
}

fn recorded() -> Vec<(String, Records)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/gpu/truth/recorded");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|f| f.path()).collect();
    files.sort();
    files.retain(|path| path.extension().is_some_and(|e| e == "bin"));
    files
        .iter()
        .map(|path| {
            let bytes = std::fs::read(path).expect("the record can be read");
            let records = Records::from_bytes(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), records)
        })
        .collect()
}

#[test]
fn emulator_agrees_with_hardware_and_documentation() {
    let devices = recorded();
    let (mut wrong, mut left_out, mut compared) = (Vec::new(), Vec::new(), 0);
    for case in truth::all() {
        for completion in [Completion::Earliest, Completion::Latest] {
            let seen = || devices.iter().filter_map(|(name, r)| Some((name.as_str(), r.get(&case.name)?)));
            if case.refused {
                compared += 1 + seen().count();
                if let Outcome::Output(_) = run(&case, completion) {
                    wrong.push(format!("{}: ran, and should be refused", case.name));
                }
                let ran = seen().filter(|(_, output)| !output.starts_with(truth::FAULT));
                wrong.extend(ran.map(|(device, _)| format!("{}: ran on {device}", case.name)));
                continue;
            }
            let output = match run(&case, completion) {
                Outcome::Output(output) => output,
                Outcome::Refused(why) if NOT_EMULATED.iter().any(|start| case.name.starts_with(start)) => {
                    left_out.push(format!("{}: {why}", case.name));
                    break;
                }
                Outcome::Refused(why) => {
                    wrong.push(format!("{}: {why}", case.name));
                    break;
                }
            };
            let documented = case.documented.as_deref().map(|want| ("documentation", want));
            for (whose, want) in documented.into_iter().chain(seen()) {
                compared += 1;
                if let Err(difference) = case.rule.compare(&output, want) {
                    wrong.push(format!("{} against {whose}: {difference}", case.name));
                }
            }
        }
    }
    println!("{compared} comparisons with {} devices; left out: {left_out:#?}", devices.len());
    assert!(wrong.is_empty(), "{} of the cases differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn records_survive_their_file() {
    let mut records = Records::default();
    records.push("whole", [1.0_f32, -300.0, 0.0].iter().flat_map(|v| v.to_le_bytes()).collect());
    records.push("runs", [0xa5_u8; 400].iter().chain(&[1; 8]).copied().collect());
    records.push("raw", vec![1, 2, 3, 4, 5]);
    records.push("fraction", 0.5_f32.to_le_bytes().to_vec());
    records.push("negative zero", (-0.0_f32).to_le_bytes().to_vec());
    let read = Records::from_bytes(&records.to_bytes()).expect("a file just written");
    assert_eq!(read, records);
}
