//! The Hopper kernels on a real GPU: every kernel against the f64 reference, then times by CUDA events.
//!
//! `cargo run --release -p natten-cuda --example gpu_sm90 [all|check|time] [device] [problem]` prints one line for each kernel and
//! problem, and fails if a result is wrong. Each kernel is asked for by name. *Expected* is what its model of cost says, *the
//! others* what the other families take, *chosen* the family that selection prefers.

use std::process::ExitCode;

use cudarc::driver::sys::CUevent_flags;
use natten_core::{
    Backend, Element, ElementType, ForwardCall, Inputs, Layout, Output, Params, Problem, Tensor, bf16, f16,
    reference,
};
use natten_cuda::driver::Driver;
use natten_cuda::registry::{Facts, Kernel, Operation, kernels_of};
use natten_cuda::{Candidate, Cuda, CudaError, CudaTensor, Device, Request, cudarc};

type Gpu = Cuda<Driver>;

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_else(|| "all".to_owned());
    let ordinal = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(0);
    let driver = match Driver::new(ordinal) {
        Ok(driver) => driver,
        Err(error) => {
            eprintln!("no usable device: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("{:?}", driver.properties());
    let wrong = if mode == "time" { 0 } else { check(&driver) };
    if mode != "check" {
        times(&driver);
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Clone, Copy)]
struct Spec {
    name: &'static str,
    batch: usize,
    tokens: [usize; 3],
    heads: [usize; 2],
    dims: [usize; 2],
    additional: usize,
    params: Params<3>,
}

impl Spec {
    fn new(name: &'static str, tokens: [usize; 3], params: Params<3>) -> Self {
        Spec { name, batch: 1, tokens, heads: [2, 2], dims: [64, 64], additional: 0, params }
    }

    fn shapes(&self) -> [Vec<usize>; 3] {
        let ([x, y, z], [heads, heads_kv], [dim, dim_v]) = (self.tokens, self.heads, self.dims);
        [[heads, dim], [heads_kv, dim], [heads_kv, dim_v]].map(|[h, d]| vec![self.batch, x, y, z, h, d])
    }
}

/// Numbers around 0, from a small linear congruence: random enough, the same everywhere, and over again after a while that
/// no shape divides, since drawing takes longer than the kernels.
fn fill<E: Element>(shape: &[usize], seed: u32) -> Tensor<E> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        E::from_f64(f64::from(state >> 8) / f64::from(1u32 << 23) - 1.0)
    };
    let drawn: Vec<E> = (0..65_521).map(next).collect();
    Tensor::from_fn(shape, |i| drawn[i % drawn.len()]).expect("the specs' shapes are small enough")
}

fn asked(driver: &Driver, kernel: &'static Kernel) -> Gpu {
    Cuda::new(driver.clone()).with_request(Request { entry: Some(kernel.entry), ..Request::default() })
}

/// Checks every kernel on shapes that need masks, several tiles, several items a thread block, and every flag.
fn check(driver: &Driver) -> usize {
    let wide = Params::new([1, 12, 20]);
    let specs = [
        Spec::new("1 token", [1, 1, 1], Params::new([1, 1, 1])),
        Spec::new("1-D", [1, 1, 100], Params::new([1, 1, 31])),
        Spec::new("1-D causal", [1, 1, 700], Params::new([1, 1, 300]).is_causal([false, false, true])),
        Spec::new("1-D dense", [1, 1, 512], Params::new([1, 1, 512])),
        Spec::new("1-D dilation 3", [1, 1, 999], Params::new([1, 1, 200]).dilation([1, 1, 3])),
        Spec::new("1-D dilation 8", [1, 1, 1104], Params::new([1, 1, 130]).dilation([1, 1, 8])),
        Spec::new("1-D dilation 17", [1, 1, 2006], Params::new([1, 1, 90]).dilation([1, 1, 17])),
        Spec::new("2-D dilation 16,16", [1, 80, 96], Params::new([1, 4, 5]).dilation([1, 16, 16])),
        Spec::new("1-D 1000, dilation 3", [1, 1, 1000], Params::new([1, 1, 200]).dilation([1, 1, 3])),
        Spec::new("1-D 1999, dil. 17", [1, 1, 1999], Params::new([1, 1, 90]).dilation([1, 1, 17])),
        Spec::new("2-D 70x100, dil. 16", [1, 70, 100], Params::new([1, 4, 5]).dilation([1, 16, 16])),
        Spec {
            heads: [6, 2],
            additional: 130,
            ..Spec::new(
                "2-D 40x41, GQA",
                [1, 40, 41],
                Params::new([1, 9, 7]).dilation([1, 3, 4]).stride([1, 2, 7]),
            )
        },
        Spec {
            batch: 2,
            ..Spec::new("3-D 11x19x23, dil.", [11, 19, 23], Params::new([3, 3, 2]).dilation([2, 5, 9]))
        },
        Spec::new("2-D scale -0.5", [1, 30, 40], wide.scale(-0.5)),
        Spec::new("2-D scale 0", [1, 30, 40], wide.scale(0.0)),
        Spec::new("2-D", [1, 30, 40], wide),
        Spec::new("2-D stride 8", [1, 32, 48], Params::new([1, 16, 16]).stride([1, 8, 8])),
        Spec::new("2-D dilation 2,3", [1, 40, 42], Params::new([1, 9, 11]).dilation([1, 2, 3])),
        Spec::new("3-D", [6, 13, 21], Params::new([3, 7, 9])),
        Spec::new("3-D stride 8", [16, 8, 16], Params::new([8, 8, 8]).stride([8, 8, 8])),
        Spec { heads: [6, 2], additional: 130, ..Spec::new("GQA, 130 additional", [1, 14, 20], wide) },
        Spec { batch: 3, heads: [3, 3], ..Spec::new("batch 3, 3-D", [5, 9, 14], Params::new([3, 5, 7])) },
        Spec {
            batch: 2,
            ..Spec::new("batch 2, 3-D, dilation", [12, 20, 27], Params::new([3, 3, 2]).dilation([2, 5, 9]))
        },
    ];
    let (mut wrong, mut lines) = (0, 0);
    for kernel in kernels() {
        let gpu = asked(driver, kernel);
        let whole = kernel.longest_row();
        for dims in [[whole, whole], [whole - 24, whole - 16]] {
            for spec in &specs {
                let spec = Spec { dims, ..*spec };
                let errors = match kernel.element_type() {
                    ElementType::F16 => check_type::<f16>(&gpu, &spec),
                    _ => check_type::<bf16>(&gpu, &spec),
                };
                let (line, ok) = match errors {
                    Ok((out, lse)) => {
                        let line = format!("out {out:.2} of the allowed error, lse off by {lse:.1e}");
                        (line, out <= 1.0 && lse <= 1e-4)
                    }
                    Err(error) => (error.to_string(), false),
                };
                (wrong, lines) = (wrong + usize::from(!ok), lines + 1);
                let mark = if ok { "ok   " } else { "WRONG" };
                println!("{mark} {:<34} {dims:>3?} {:<20} {line}", kernel.entry, spec.name);
            }
        }
    }
    println!("{wrong} of {lines} are wrong");
    wrong
}

/// The largest error of the result against what roundings of weights and result may do, and of the log-sum-exp.
fn check_type<E: Element>(gpu: &Gpu, spec: &Spec) -> Result<(f64, f64), CudaError> {
    let [q, k, v] = spec.shapes();
    let (query, key, value) = (fill::<E>(&q, 1), fill::<E>(&k, 2), fill::<E>(&v, 3));
    let mut host = Inputs::new(query.view(), key.view(), value.view());
    let list = |dim| fill::<E>(&[spec.batch, spec.additional, spec.heads[1], dim], 4);
    let extra = (spec.additional > 0).then(|| spec.dims.map(list));
    if let Some([keys, values]) = &extra {
        host = host.with_additional(keys.view(), values.view());
    }
    let layouts = host.map(|view| *view.layout());
    let problem = Problem::new(&spec.params.to_dyn(), &layouts, E::TYPE).expect("the specs are valid");
    let device = Inputs {
        query: gpu.upload(&host.query)?,
        key: gpu.upload(&host.key)?,
        value: gpu.upload(&host.value)?,
        additional: match &host.additional {
            Some([keys, values]) => Some([gpu.upload(keys)?, gpu.upload(values)?]),
            None => None,
        },
    };
    let mut out: CudaTensor<E, Driver> = gpu.allocate(&problem.out_shape())?;
    let mut lse: CudaTensor<f32, Driver> = gpu.allocate(&problem.lse_shape())?;
    let output = Output { out: out.view_mut(), lse: Some(lse.view_mut()) };
    gpu.forward(ForwardCall::new(&problem, device.map(CudaTensor::view), output)?)?;
    let (out, lse) = (gpu.download(&out)?, gpu.download(&lse)?);

    let exact = reference::forward(&problem, &host);
    let roundoff = if E::TYPE == ElementType::Bf16 { 2f64.powi(-8) } else { 2f64.powi(-11) };
    let allowed = |x: f64| roundoff * (x.abs() + 1.0) + 1e-5;
    let worst = |worst: f64, error: f64| if error.is_nan() { f64::INFINITY } else { worst.max(error) };
    let pairs = out.as_slice().iter().zip(exact.out.as_slice());
    let out_error =
        pairs.map(|(found, &exact)| (found.to_f64() - exact).abs() / allowed(exact)).fold(0.0, worst);
    let pairs = lse.as_slice().iter().zip(exact.lse.as_slice());
    let lse_error = pairs.map(|(found, &exact)| (f64::from(*found) - exact).abs()).fold(0.0, worst);
    Ok((out_error, lse_error))
}

/// The problems that others publish, with NATTEN's milliseconds on an H100: the kernel, and with its permutations; and
/// windows of a few tokens.
fn times(driver: &Driver) {
    let of = |name, tokens, heads, params, head_dims: &'static [usize], published| {
        (Spec { heads: [heads; 2], ..Spec::new(name, tokens, params) }, head_dims, published)
    };
    let (line, flux, hunyuan, cosmos) = ([1, 1, 32_768], [1, 256, 256], [30, 48, 80], [16, 44, 80]);
    let (long, plane, image, video) = (
        Params::new([1, 1, 2048]),
        Params::new([1, 80, 80]),
        Params::new([1, 16, 16]),
        Params::new([18, 24, 24]),
    );
    let dense = Params::new([1, 1, 16_384]);
    let few = Params::new([3, 7, 7]).scale(1.0);
    let dilated = Params::new([1, 9, 9]).dilation([1, 16, 16]);
    let problems = [
        of("1-D w2048", line, 1, long, &[128, 64], "0.0948"),
        of("1-D w2048 s2048", line, 1, long.stride([1, 1, 2048]), &[128], "0.0593"),
        of("2-D 64x64 w16", [1, 64, 64], 24, image, &[128, 64, 32], "-"),
        of("2-D 64x64 w16 s8", [1, 64, 64], 24, image.stride([1, 8, 8]), &[128, 64, 32], "-"),
        of("2-D 64x64 w16 s16", [1, 64, 64], 24, image.stride([1, 16, 16]), &[128, 64, 32], "-"),
        of("dense 16k", [1, 1, 16_384], 24, dense, &[128], "-"),
        of("causal 16k", [1, 1, 16_384], 24, dense.is_causal([false, false, true]), &[128], "-"),
        of("FLUX w80", flux, 24, plane, &[128, 64, 32], "16.20 (18.60)"),
        of("FLUX w80 s16", flux, 24, plane.stride([1, 16, 16]), &[128, 64], "7.91 (10.60)"),
        of("Cosmos w16,24,16", cosmos, 32, Params::new([16, 24, 16]), &[128], "-"),
        of("Hunyuan", hunyuan, 24, video, &[128, 64, 32], "79.0 (84.4)"),
        of("Hunyuan s16,8,8", hunyuan, 24, video.stride([16, 8, 8]), &[128, 64, 32], "23.4 (29.1)"),
        of("Hunyuan w30,40,40", hunyuan, 24, Params::new([30, 40, 40]), &[128], "-"),
        of("L0", [16, 32, 48], 16, few, &[64], "-"),
        of("L1", [16, 64, 96], 8, few, &[64], "-"),
        of("L2", [32, 64, 96], 4, Params::new([3, 5, 5]).scale(1.0), &[64], "-"),
        of("L4", [64, 256, 384], 2, Params::new([3, 3, 3]).scale(1.0), &[64], "-"),
        of("N1", [1, 512, 512], 4, dilated, &[64, 8], "-"),
    ];
    println!(
        "{:<34} {:<18} {:>9} {:>9} {:>7} {:>7} {:>9} {:>7}  NATTEN's ms",
        "entry", "problem", "ms", "expected", "TFLOP/s", "useful", "others", "chosen"
    );
    let wanted = std::env::args().nth(3).unwrap_or_default();
    for (problem, head_dims, published) in problems {
        if !problem.name.contains(&wanted) {
            continue;
        }
        for &head_dim in head_dims {
            let spec = Spec { dims: [head_dim; 2], ..problem };
            let published = if head_dim == 128 { published } else { "-" };
            if let Err(error) = time_kernels(driver, &spec, published) {
                println!("{:<18} {head_dim}: {error}", spec.name);
            }
        }
    }
}

/// A line for each kernel that is made for the problem's rows.
fn time_kernels(driver: &Driver, spec: &Spec, published: &str) -> Result<(), CudaError> {
    let gpu = Cuda::new(driver.clone());
    let shapes = spec.shapes();
    let [query, key, value] = [0, 1, 2].map(|i| fill::<bf16>(&shapes[i], i as u32));
    let inputs =
        Inputs::new(gpu.upload(&query.view())?, gpu.upload(&key.view())?, gpu.upload(&value.view())?);
    let layouts: Inputs<Layout> =
        Inputs::new(*query.view().layout(), *key.view().layout(), *value.view().layout());
    let problem =
        Problem::new(&spec.params.to_dyn(), &layouts, ElementType::Bf16).expect("the specs are valid");
    let mut out: CudaTensor<bf16, Driver> = gpu.allocate(&problem.out_shape())?;
    let output = Output { out: out.view_mut(), lse: None };
    let candidates = gpu.tune(&problem, &inputs.map(CudaTensor::view), &output, usize::MAX)?;
    let is_hopper = |entry: &str| entry.contains("sm90");
    let entry = |candidate: &Candidate| candidate.request.entry.unwrap_or_default();
    let chosen =
        candidates.first().map_or("none", |first| if is_hopper(entry(first)) { "sm90" } else { "others" });
    let time_one = |request: Request, out: &mut CudaTensor<bf16, Driver>| {
        let asked = gpu.clone().with_request(request);
        time(driver, || {
            let output = Output { out: out.view_mut(), lse: None };
            asked.forward(ForwardCall::new(&problem, inputs.map(CudaTensor::view), output)?)
        })
    };
    let others = candidates.iter().filter(|candidate| !is_hopper(entry(candidate)));
    let others = others.min_by(|a, b| a.microseconds.total_cmp(&b.microseconds)).map(|other| other.request);
    let bucket = kernels().map(Facts::longest_row).filter(|&d| d >= spec.dims[0]).min();
    let of_type = kernels().filter(|kernel| kernel.element_type() == ElementType::Bf16);
    for kernel in of_type.filter(|kernel| Some(kernel.longest_row()) == bucket) {
        let request = Request { entry: Some(kernel.entry), ..Request::default() };
        let output = Output { out: out.view_mut(), lse: None };
        let asked = gpu.clone().with_request(request);
        let boxes = match asked.explain(&problem, &inputs.map(CudaTensor::view), &output) {
            Ok(decision) => decision,
            Err(reason) => {
                println!("{:<34} {:<18} {reason}", kernel.entry, spec.name);
                continue;
            }
        };
        // Turn and turn about: a GPU that gets warm slows whoever comes later.
        let [mut ms, mut of_others] = [f64::INFINITY; 2];
        for _ in 0..3 {
            ms = ms.min(time_one(request, &mut out)?);
            if let Some(other) = others {
                of_others = of_others.min(time_one(other, &mut out)?);
            }
        }
        let issued = problem.scores() as f64 * boxes.issued_over_useful * 4.0 * kernel.max_head_dim as f64;
        println!(
            "{:<34} {:<18} {ms:>9.4} {:>9.4} {:>7.1} {:>7.1} {of_others:>9.4} {chosen:>7}  {published}",
            kernel.entry,
            spec.name,
            boxes.microseconds / 1e3,
            issued / ms / 1e9,
            problem.useful_flops() / ms / 1e9
        );
    }
    Ok(())
}

/// All kernels of the family.
fn kernels() -> impl Iterator<Item = &'static Kernel> {
    kernels_of("sm90", Operation::Forward)
}

/// Median milliseconds of a launch.
fn time(driver: &Driver, mut launch: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let stream = driver.stream();
    let event = || stream.record_event(Some(CUevent_flags::CU_EVENT_DEFAULT)).expect("events work here");
    let mut samples = Vec::new();
    // The first run compiles, the second warms up.
    for round in 0..12 {
        let start = event();
        launch()?;
        let end = event();
        let ms = f64::from(start.elapsed_ms(&end).expect("events were recorded"));
        if round >= 2 {
            samples.push(ms);
        }
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}
