//! One problem over several emulated GPUs, whose ranks exchange by way of the host: what is no part of a device is the same code as on
//! the CPU, so a few problems of each kind do.

use std::time::Duration;

use natten::cpu::Cpu;
use natten::cuda::{Cuda, CudaView};
use natten::exchange::{Message, Messages, MessagesOn, check_messages};
use natten::sharded::{InProcess, Sharded, Way};
use natten::{Backend, Call, Element, Exchange, ExchangeError, Inputs, Ranks, Saved, Tensor, bf16};
use natten_emulator::Emulated;
use natten_tests::shards::{Cut, ShardCase, in_threads, narrow, whole_of};
use natten_tests::{Spec, assert_close};

type Gpu = Cuda<Emulated>;

/// Ranks of one process whose tensors are on devices: what is sent is downloaded, what is received uploaded.
struct ByHost(InProcess);

impl Ranks for ByHost {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn ranks(&self) -> usize {
        self.0.ranks()
    }

    fn poll(&self) -> Result<bool, ExchangeError> {
        self.0.poll()
    }

    fn wait(&self, timeout: Duration) -> Result<(), ExchangeError> {
        self.0.wait(timeout)
    }
}

fn download<E: Element>(gpu: &Gpu, view: &CudaView<'_, E>) -> Tensor<E> {
    gpu.download(&gpu.contiguous(*view).expect("memory")).expect("it ran")
}

impl Exchange<Gpu> for ByHost {
    fn exchange<E: Element, R>(
        &self,
        gpu: &Gpu,
        messages: MessagesOn<'_, Gpu, E>,
        meanwhile: impl FnOnce() -> R,
    ) -> Result<R, ExchangeError> {
        check_messages::<Gpu, E>(&messages, self.rank(), self.ranks())?;
        let Messages { sends, receives } = messages;
        let sent: Vec<_> = sends.iter().map(|message| (message.rank, download(gpu, &message.view))).collect();
        let shapes = receives.iter().map(|message| (message.rank, message.view.layout().shape()));
        let mut received: Vec<(usize, Tensor<E>)> =
            shapes.map(|(rank, shape)| (rank, Tensor::zeros(shape).expect("small"))).collect();
        let on_host = Messages {
            sends: sent.iter().map(|(rank, tensor)| Message { rank: *rank, view: tensor.view() }).collect(),
            receives: received
                .iter_mut()
                .map(|(rank, tensor)| Message { rank: *rank, view: tensor.view_mut() })
                .collect(),
        };
        let done = self.0.exchange(&Cpu::new(), on_host, meanwhile)?;
        for (message, (_, tensor)) in receives.into_iter().zip(&received) {
            let uploaded = gpu.upload(&tensor.view()).expect("memory");
            gpu.copy(uploaded.view(), message.view).expect("of one shape");
        }
        Ok(done)
    }
}

/// What a rank gives, on the host.
type Given<E> = (Tensor<E>, Tensor<f32>, Vec<Tensor<E>>);

/// The forward and the backward of a rank on its device.
fn on_device<E: Element>(case: &ShardCase<E>, sharded: &Sharded<ByHost>, gpu: &Gpu) -> Given<E> {
    let upload = |tensor: &Tensor<E>| gpu.upload(&tensor.view()).expect("memory");
    let Inputs { query, key, value, additional } = case.inputs.map(upload);
    let mut call = Call::new(&query, &key, &value).expect("one device");
    if let Some([keys, values]) = &additional {
        call = call.additional(keys, values).expect("one device");
    }
    let ((out, lse), halos) = sharded.forward_keeping(&call).expect("every rank is there");
    let d_out = upload(&case.d_out);
    let d_lse = case.d_lse.as_ref().map(|d_lse| gpu.upload(&d_lse.view()).expect("memory"));
    let saved = Saved { out: &out, lse: &lse, d_out: &d_out, d_lse: d_lse.as_ref() };
    let gradients = sharded.backward(&call, &saved, Some(&halos)).expect("every rank is there");
    let gradients: Vec<_> =
        gradients.roles().map(|(_, tensor)| gpu.download(tensor).expect("it ran")).collect();
    (gpu.download(&out).expect("it ran"), gpu.download(&lse).expect("it ran"), gradients)
}

/// Holds ranks on devices of a compute capability to the whole on the CPU.
fn expect_whole<E: Element>(spec: &Spec, cut: &Cut, major: u32, [of_out, of_gradients]: [f64; 2]) {
    let (case, whole) = (ShardCase::<E>::of(spec, 990), whole_of::<E>(spec));
    let expected = case.on_one_device();
    let parts = in_threads(cut.ranks, |exchange| {
        let gpu = Cuda::new(Emulated::new(major, 0));
        let sharded = cut.part(ByHost(exchange), &whole);
        let tokens = sharded.tokens();
        let given = on_device(&case.shard(cut.axis, &tokens), &sharded, &gpu);
        (tokens, given)
    });
    for (tokens, (out, lse, gradients)) in parts {
        let what = |of: &str| format!("{of} of {tokens:?}, {cut:?} of {spec:?} on {major}.0");
        let own = |tensor: &Tensor<E>| narrow(tensor, cut.axis, &tokens);
        assert_close(&what("out"), &out, &own(&expected.out), of_out);
        assert_close(&what("lse"), &lse, &narrow(&expected.lse, cut.axis, &tokens), of_out);
        for (i, (found, (role, expected))) in gradients.iter().zip(expected.gradients.roles()).enumerate() {
            let expected = if i < 3 { own(expected) } else { expected.clone() };
            assert_close(&what(&format!("gradient of {role}")), found, &expected, of_gradients);
        }
    }
}

#[test]
fn ranks_on_gpus_are_the_whole() {
    let line = Spec::na(&[30], &[5]).stride(&[2]).dilation(&[2]).heads(2, 1);
    expect_whole::<f32>(&line, &Cut::even(2, 0), 8, [1e-5, 1e-4]);
    let image = Spec::na(&[16, 6], &[5, 3]).causal(&[true, false]).additional(2).batch(2);
    expect_whole::<f32>(&image, &Cut::at(0, &[3, 9, 16]), 8, [1e-5, 1e-4]);
    let clip = Spec::na(&[6, 12, 5], &[3, 5, 3]).heads(2, 1).dims(16, 16);
    for major in [8, 9] {
        expect_whole::<bf16>(&clip, &Cut::even(2, 1), major, [3e-2, 1e-1]);
    }
}

#[test]
fn keys_go_round_between_gpus() {
    let spec = Spec::na(&[18, 4], &[18, 3]).heads(2, 1).additional(1);
    let cut = Cut { way: Some(Way::Ring), ..Cut::at(0, &[7, 12, 18]) };
    expect_whole::<f32>(&spec, &cut, 8, [1e-5, 1e-4]);
}
