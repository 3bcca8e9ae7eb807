//! A driver may refuse a tensor map for reasons of its own. The call then runs on the next best offer, with nothing launched
//! of the first, and calls like it do so at once.

use std::sync::{Arc, Mutex};

use natten_core::{Backend, ForwardCall, Inputs, Output, Params, Problem, bf16};
use natten_cuda::device::{FunctionCache, PreparedLaunch, Properties, TensorMap, TensorMapSpec};
use natten_cuda::{ComputeCapability, Cuda, CudaError, CudaTensor, Device, DeviceError, Request};

/// A device that runs nothing, and knows no tensor maps.
#[derive(Clone)]
struct Strict(Arc<State>);

struct State {
    properties: Properties,
    functions: FunctionCache<&'static str>,
    launched: Mutex<Vec<&'static str>>,
    refused: Mutex<usize>,
}

impl Strict {
    fn new() -> Self {
        let properties = Properties {
            name: "strict".to_owned(),
            compute_capability: ComputeCapability { major: 9, minor: 0 },
            multiprocessors: 131,
            shared_bytes_per_block: 227 << 10,
            memory_bytes: 1 << 36,
        };
        let functions = FunctionCache::default();
        Strict(Arc::new(State {
            properties,
            functions,
            launched: Mutex::default(),
            refused: Mutex::default(),
        }))
    }

    fn take(&self) -> (Vec<&'static str>, usize) {
        let launched = std::mem::take(&mut *self.0.launched.lock().unwrap());
        (launched, std::mem::take(&mut *self.0.refused.lock().unwrap()))
    }
}

impl Device for Strict {
    type Memory = u64;
    type Function = &'static str;

    fn id(&self) -> u64 {
        1
    }

    fn properties(&self) -> &Properties {
        &self.0.properties
    }

    fn functions(&self) -> &FunctionCache<&'static str> {
        &self.0.functions
    }

    fn allocate(&self, _bytes: usize) -> Result<u64, DeviceError> {
        Ok(1 << 20)
    }

    fn address(memory: &u64) -> u64 {
        *memory
    }

    fn write(&self, _memory: &u64, _from: &[u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn read(&self, _memory: &u64, _to: &mut [u8]) -> Result<(), DeviceError> {
        Ok(())
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn load(&self, _ptx: &str, entry: &'static str, _shared_bytes: u32) -> Result<&'static str, DeviceError> {
        Ok(entry)
    }

    fn tensor_map(&self, _spec: &TensorMapSpec) -> Result<TensorMap, DeviceError> {
        *self.0.refused.lock().unwrap() += 1;
        Err(DeviceError::MissingFeature { feature: "tensor maps" })
    }

    fn launch(&self, launch: &PreparedLaunch<'_, &'static str>) -> Result<(), DeviceError> {
        self.0.launched.lock().unwrap().push(launch.function());
        Ok(())
    }
}

#[test]
fn the_next_best_runs_and_is_remembered() {
    let cuda = Cuda::new(Strict::new());
    let shape = [1, 30, 48, 80, 24, 128];
    let tensor = || -> CudaTensor<bf16, Strict> { cuda.allocate(&shape).unwrap() };
    let (query, key, value, mut out) = (tensor(), tensor(), tensor(), tensor());
    let inputs = Inputs::new(query.view(), key.view(), value.view());
    let layouts = inputs.map(|view| *view.layout());
    let params = Params::new([18, 24, 24]).to_dyn();
    let problem = Problem::new(&params, &layouts, natten_core::ElementType::Bf16).unwrap();
    let mut call = |cuda: &Cuda<Strict>| {
        let output = Output { out: out.view_mut(), lse: None };
        cuda.forward(ForwardCall::new(&problem, inputs, output)?)
    };
    call(&cuda).unwrap();
    let (launched, refused) = cuda.device().take();
    assert_eq!(launched, ["natten_forward_sm80_bf16_d128_q128_k64"]);
    assert!(refused > 0);
    call(&cuda).unwrap();
    assert_eq!(cuda.device().take(), (launched.clone(), 0), "asked the driver again");

    // What is told is what runs.
    let output = Output { out: out.view_mut(), lse: None };
    let decision = cuda.explain(&problem, &inputs, &output).unwrap();
    assert_eq!(decision.kernel, launched[0]);
    let rejections = decision.rejections.to_string();
    assert!(rejections.contains("natten_forward_sm90_bf16_d128 cannot map a tensor: the driver refuses"));

    // Asked for by name there is no other.
    let entry = Some("natten_forward_sm90_bf16_d128");
    let asked = cuda.clone().with_request(Request { entry, ..Request::default() });
    let output = Output { out: out.view_mut(), lse: None };
    let refused = asked.forward(ForwardCall::new(&problem, inputs, output).unwrap()).unwrap_err();
    assert!(matches!(refused, CudaError::Unsupported(_)), "{refused}");
    assert!(cuda.device().take().0.is_empty());
}
