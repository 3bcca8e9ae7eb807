//! The backends that the program can run on, behind one function.

use clap::ValueEnum;
use natten::cpu::{Cpu, Isa};
use natten::{
    Call, DynParams, Element, ElementType, Gradients, Inputs, Output, Problem, Saved, Tensor, TensorView,
    reference,
};

use crate::error::CliError;
use crate::golden::{Golden, GoldenError};

/// A backend by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BackendName {
    /// The CPU, with the best instructions it has.
    Cpu,
    /// The f64 oracle: exact, single-threaded and slow.
    Reference,
}

/// A backend ready to run.
#[derive(Clone, Debug)]
pub enum Runner {
    /// The CPU backend.
    Cpu(Cpu),
    /// The oracle of `natten-core`.
    Reference,
}

impl Runner {
    /// The backend of this name; `isa` and `threads` concern the CPU alone.
    pub fn new(name: BackendName, isa: Option<Isa>, threads: Option<usize>) -> Result<Self, CliError> {
        if name == BackendName::Reference {
            return Ok(Runner::Reference);
        }
        let mut cpu = Cpu::new();
        if let Some(isa) = isa {
            cpu = cpu.isa(isa)?;
        }
        if let Some(threads) = threads {
            cpu = cpu.threads(threads)?;
        }
        // An instruction set forced by the environment may not exist: say so before the first case.
        cpu.chosen_isa()?;
        Ok(Runner::Cpu(cpu))
    }

    /// Its name, with what it chose.
    pub fn describe(&self) -> String {
        match self {
            Runner::Cpu(cpu) => match cpu.chosen_isa() {
                Ok(isa) => format!("cpu ({isa})"),
                Err(_) => "cpu".to_owned(),
            },
            Runner::Reference => "reference (f64)".to_owned(),
        }
    }

    /// Forward, and backward where the case has gradients: each result with its name, widened to f64.
    pub fn run(&self, golden: &Golden) -> Result<Vec<Computed>, RunError> {
        match golden.element_type {
            ElementType::F16 => self.run_as::<natten::f16>(golden),
            ElementType::Bf16 => self.run_as::<natten::bf16>(golden),
            ElementType::F64 => self.run_as::<f64>(golden),
            _ => self.run_as::<f32>(golden),
        }
    }

    fn run_as<E: Element>(&self, golden: &Golden) -> Result<Vec<Computed>, RunError> {
        let case = Case::<E>::of(golden)?;
        match self {
            Runner::Cpu(cpu) => on_cpu(cpu, &case),
            Runner::Reference => on_reference(&case),
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

fn on_cpu<E: Element>(cpu: &Cpu, case: &Case<E>) -> Result<Vec<Computed>, RunError> {
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
    Ok(named(Output { out, lse: Some(lse) }, gradients))
}

fn on_reference<E: Element>(case: &Case<E>) -> Result<Vec<Computed>, RunError> {
    let views = views(&case.inputs);
    let problem = Problem::new(&case.params, &views.map(|view| *view.layout()), E::TYPE)
        .map_err(natten::Error::from)?;
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
    Ok(named(Output { out, lse: Some(lse) }, gradients))
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
