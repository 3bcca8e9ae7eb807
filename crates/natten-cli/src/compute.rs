//! The backends that the program can run on, behind one function.

use clap::{Args, ValueEnum};
use natten::cpu::{Cpu, Isa};
#[cfg(feature = "cuda")]
use natten::cuda::driver::Driver;
#[cfg(any(feature = "cuda", feature = "emulator"))]
use natten::cuda::{Cuda, Device};
use natten::{
    Call, DynParams, Element, ElementType, Gradients, Inputs, Output, Problem, Saved, Tensor, TensorView,
    reference,
};

#[cfg(feature = "emulator")]
use natten_emulator::Emulated;

use crate::error::CliError;
use crate::golden::{Golden, GoldenError};

/// A backend by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The CPU, with the best instructions it has.
    Cpu,
    /// The f64 oracle: exact, single-threaded and slow.
    Reference,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda,
    /// GPU kernels, interpreted with every check on: slow.
    #[cfg(feature = "emulator")]
    Emulator,
}

/// Settings that concern one backend or another.
#[derive(Args, Clone, Debug)]
pub struct BackendFlags {
    /// What computes.
    #[arg(long, ignore_case = true, value_enum, default_value_t = BackendName::Cpu)]
    pub backend: BackendName,
    /// Instructions to use on the CPU: scalar, avx2, avx512, avx512_bf16, amx or neon [default: the best there are].
    #[arg(long)]
    pub isa: Option<Isa>,
    /// Threads to use on the CPU [default: one for each core].
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=natten::cpu::MAX_THREADS as i64))]
    pub threads: Option<u16>,
    /// Which GPU to use.
    #[cfg(feature = "cuda")]
    #[arg(long, default_value_t = 0, value_name = "ORDINAL")]
    pub gpu: usize,
    /// Compute capability to emulate.
    #[cfg(feature = "emulator")]
    #[arg(long, default_value = "8.0", value_name = "MAJOR.MINOR", value_parser = capability)]
    pub capability: (u32, u32),
}

/// `8.0`.
#[cfg(feature = "emulator")]
pub fn capability(text: &str) -> Result<(u32, u32), String> {
    let parsed =
        text.split_once('.').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    parsed.ok_or_else(|| "two numbers with a dot between them are needed, as in 8.0".to_owned())
}

/// A backend ready to run.
#[derive(Clone, Debug)]
pub enum Runner {
    /// The CPU backend.
    Cpu(Cpu),
    /// The oracle of `natten-core`.
    Reference,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(Cuda<Driver>),
    /// An emulated GPU.
    #[cfg(feature = "emulator")]
    Emulator(Cuda<Emulated>),
}

impl Runner {
    /// The backend that the flags ask for.
    pub fn new(flags: &BackendFlags) -> Result<Self, CliError> {
        match flags.backend {
            BackendName::Reference => Ok(Runner::Reference),
            BackendName::Cpu => {
                let mut cpu = Cpu::new();
                if let Some(isa) = flags.isa {
                    cpu = cpu.isa(isa)?;
                }
                if let Some(threads) = flags.threads {
                    cpu = cpu.threads(threads.into())?;
                }
                // An instruction set forced by the environment may not exist: say so before the first case.
                cpu.chosen_isa()?;
                Ok(Runner::Cpu(cpu))
            }
            #[cfg(feature = "cuda")]
            BackendName::Cuda => Ok(Runner::Cuda(Cuda::new(Driver::new(flags.gpu)?))),
            #[cfg(feature = "emulator")]
            BackendName::Emulator => {
                let (major, minor) = flags.capability;
                Ok(Runner::Emulator(Cuda::new(Emulated::new(major, minor))))
            }
        }
    }

    /// Its name, with what it chose.
    pub fn describe(&self) -> String {
        match self {
            Runner::Cpu(cpu) => match cpu.chosen_isa() {
                Ok(isa) => format!("cpu ({isa})"),
                Err(_) => "cpu".to_owned(),
            },
            Runner::Reference => "reference (f64)".to_owned(),
            #[cfg(feature = "cuda")]
            Runner::Cuda(cuda) => format!("cuda ({})", cuda.device().properties().name),
            #[cfg(feature = "emulator")]
            Runner::Emulator(cuda) => format!("emulator ({})", cuda.device().properties().name),
        }
    }

    /// Forward, and backward where the case has gradients.
    pub fn run(&self, golden: &Golden) -> Result<Ran, RunError> {
        match golden.element_type {
            ElementType::F16 => self.run_as::<natten::f16>(golden),
            ElementType::Bf16 => self.run_as::<natten::bf16>(golden),
            ElementType::F64 => self.run_as::<f64>(golden),
            _ => self.run_as::<f32>(golden),
        }
    }

    fn run_as<E: Element>(&self, golden: &Golden) -> Result<Ran, RunError> {
        let case = Case::<E>::of(golden)?;
        match self {
            Runner::Cpu(cpu) => on_cpu(cpu, &case),
            Runner::Reference => on_reference(&case),
            #[cfg(feature = "cuda")]
            Runner::Cuda(cuda) => on_device(cuda, &case),
            #[cfg(feature = "emulator")]
            Runner::Emulator(cuda) => on_device(cuda, &case),
        }
    }
}

/// Why a case gave no results.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    #[error(transparent)]
    Golden(#[from] GoldenError),
    #[error(transparent)]
    Natten(#[from] natten::Error),
    #[cfg(any(feature = "cuda", feature = "emulator"))]
    #[error(transparent)]
    Cuda(#[from] natten::cuda::CudaError),
}

impl RunError {
    /// The reason against each kernel, where none serves the problem.
    pub fn rejections(&self) -> Vec<(&'static str, String)> {
        match self {
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            RunError::Natten(natten::Error::Backend { source, .. }) => {
                source.downcast_ref().map(reasons).unwrap_or_default()
            }
            #[cfg(any(feature = "cuda", feature = "emulator"))]
            RunError::Cuda(error) => reasons(error),
            _ => Vec::new(),
        }
    }
}

#[cfg(any(feature = "cuda", feature = "emulator"))]
fn reasons(error: &natten::cuda::CudaError) -> Vec<(&'static str, String)> {
    let natten::cuda::CudaError::Unsupported(rejections) = error else { return Vec::new() };
    rejections.0.iter().map(|rejection| (rejection.kernel, rejection.reason.to_string())).collect()
}

/// What running a case gave, and on which kernels.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Each result with its name, widened to f64.
    pub results: Vec<Computed>,
    pub kernels: Kernels,
}

/// The kernels that ran, by name and in order; on a GPU none where there was nothing to compute.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kernels {
    pub forward: Vec<String>,
    /// Empty without gradients.
    pub backward: Vec<String>,
}

impl Kernels {
    /// One kernel for all.
    fn only(name: &str, has_backward: bool) -> Self {
        let forward = vec![name.to_owned()];
        Kernels { backward: if has_backward { forward.clone() } else { Vec::new() }, forward }
    }
}

/// A result by the name it has in golden files.
#[derive(Clone, Debug)]
pub struct Computed {
    pub name: &'static str,
    pub values: Tensor<f64>,
}

/// The operands of a golden case in the element type they are run in.
struct Case<E> {
    params: DynParams,
    inputs: Inputs<Tensor<E>>,
    /// Gradients of the output and of the log-sum-exp, when a backward is wanted.
    d_out: Option<(Tensor<E>, Option<Tensor<f32>>)>,
}

impl<E: Element> Case<E> {
    fn of(golden: &Golden) -> Result<Self, GoldenError> {
        let tensor = |name| golden.require(name).map(|values| values.cast::<E>());
        let mut inputs = Inputs::new(tensor("q")?, tensor("k")?, tensor("v")?);
        if golden.get("add_k").is_some() {
            inputs = inputs.with_additional(tensor("add_k")?, tensor("add_v")?);
        }
        let d_out = match golden.has_gradients() {
            true => Some((tensor("d_out")?, golden.get("d_lse").map(|values| values.cast()))),
            false => None,
        };
        Ok(Case { params: golden.arguments.params(), inputs, d_out })
    }
}

fn on_cpu<E: Element>(cpu: &Cpu, case: &Case<E>) -> Result<Ran, RunError> {
    let inputs = &case.inputs;
    let mut call = Call::new(&inputs.query, &inputs.key, &inputs.value)?.on(cpu.clone())?;
    if let Some([keys, values]) = &inputs.additional {
        call = call.additional(keys, values)?;
    }
    let (out, lse) = call.forward_with_lse(&case.params)?;
    let gradients = match &case.d_out {
        None => None,
        Some((d_out, d_lse)) => {
            let saved = Saved { out: &out, lse: &lse, d_out, d_lse: d_lse.as_ref() };
            Some(call.backward(&case.params, &saved)?)
        }
    };
    let isa = cpu.chosen_isa().map_err(|source| backend_failed("cpu", source))?;
    let kernels = Kernels::only(&format!("cpu_{isa}"), gradients.is_some());
    Ok(Ran { results: named(Output { out, lse: Some(lse) }, gradients), kernels })
}

fn backend_failed(
    backend: &'static str,
    source: impl std::error::Error + Send + Sync + 'static,
) -> natten::Error {
    natten::Error::Backend { backend, source: Box::new(source) }
}

/// The same calls on tensors that live on a device.
#[cfg(any(feature = "cuda", feature = "emulator"))]
fn on_device<E: Element, D: Device>(cuda: &Cuda<D>, case: &Case<E>) -> Result<Ran, RunError> {
    let upload = |tensor: &Tensor<E>| cuda.upload(&tensor.view());
    let Inputs { query, key, value, additional } = &case.inputs;
    let (query, key, value) = (upload(query)?, upload(key)?, upload(value)?);
    let additional = match additional {
        Some([keys, values]) => Some([upload(keys)?, upload(values)?]),
        None => None,
    };
    let mut call = Call::new(&query, &key, &value)?;
    if let Some([keys, values]) = &additional {
        call = call.additional(keys, values)?;
    }
    let (out, lse) = call.forward_with_lse(&case.params)?;
    let gradients = match &case.d_out {
        None => None,
        Some((d_out, d_lse)) => {
            let d_out = upload(d_out)?;
            let d_lse = d_lse.as_ref().map(|d_lse| cuda.upload(&d_lse.view())).transpose()?;
            let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
            let Gradients { query, key, value, additional } = call.backward(&case.params, &saved)?;
            let additional = match &additional {
                Some([keys, values]) => Some([cuda.download(keys)?, cuda.download(values)?]),
                None => None,
            };
            let (query, key) = (cuda.download(&query)?, cuda.download(&key)?);
            Some(Gradients { query, key, value: cuda.download(&value)?, additional })
        }
    };
    let problem = problem(case)?;
    let names = |of_backward| -> Result<Vec<String>, RunError> {
        Ok(cuda.launched_kernels(&problem, of_backward)?.into_iter().map(str::to_owned).collect())
    };
    let backward = if gradients.is_some() { names(true)? } else { Vec::new() };
    let kernels = Kernels { forward: names(false)?, backward };
    let output = Output { out: cuda.download(&out)?, lse: Some(cuda.download(&lse)?) };
    Ok(Ran { results: named(output, gradients), kernels })
}

fn on_reference<E: Element>(case: &Case<E>) -> Result<Ran, RunError> {
    let views = views(&case.inputs);
    let problem = problem(case)?;
    let reference::Forward { out, lse } = reference::forward(&problem, &views);
    let gradients = case.d_out.as_ref().map(|(d_out, d_lse)| {
        let (d_out, d_lse): (Tensor<f64>, _) = (d_out.cast(), d_lse.as_ref().map(Tensor::cast::<f64>));
        let saved = Saved {
            out: out.view(),
            lse: lse.view(),
            d_out: d_out.view(),
            d_lse: d_lse.as_ref().map(|d_lse| d_lse.view()),
        };
        reference::backward(&problem, &views, &saved)
    });
    let kernels = Kernels::only("reference", gradients.is_some());
    Ok(Ran { results: named(Output { out, lse: Some(lse) }, gradients), kernels })
}

fn problem<E: Element>(case: &Case<E>) -> Result<Problem, natten::Error> {
    Ok(Problem::new(&case.params, &views(&case.inputs).map(|view| *view.layout()), E::TYPE)?)
}

fn views<E: Element>(inputs: &Inputs<Tensor<E>>) -> Inputs<TensorView<'_, E>> {
    Inputs {
        query: inputs.query.view(),
        key: inputs.key.view(),
        value: inputs.value.view(),
        additional: inputs.additional.as_ref().map(|pair| pair.each_ref().map(|tensor| tensor.view())),
    }
}

fn named<E: Element, L: Element>(
    output: Output<Tensor<E>, Tensor<L>>,
    gradients: Option<Gradients<Tensor<E>>>,
) -> Vec<Computed> {
    let mut results = vec![Computed { name: "out", values: output.out.cast() }];
    results.extend(output.lse.map(|lse| Computed { name: "lse", values: lse.cast() }));
    if let Some(Gradients { query, key, value, additional }) = gradients {
        let [add_k, add_v] = additional.map_or([None, None], |pair| pair.map(Some));
        let all = [
            ("d_q", Some(query)),
            ("d_k", Some(key)),
            ("d_v", Some(value)),
            ("d_add_k", add_k),
            ("d_add_v", add_v),
        ];
        let present = all.into_iter().filter_map(|(name, tensor)| Some((name, tensor?)));
        results.extend(present.map(|(name, tensor)| Computed { name, values: tensor.cast() }));
    }
    results
}
