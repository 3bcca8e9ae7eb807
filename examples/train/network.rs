//! The network: a token for the patch around each pixel, two blocks of neighborhood attention and a perceptron, the mean over tokens,
//! a score for each digit.

use natten::{Error, Params};

use crate::attention::{Attention, Qkv};
use crate::digits::{CLASSES, Digits, PATCH, Rng, TOKENS};
use crate::layers::{LayerNorm, Linear, Parameter, Real, Silu, add, sum};

const HEADS: usize = 2;
const HEAD_DIM: usize = 16;
/// Numbers of a token.
const WIDTH: usize = HEADS * HEAD_DIM;
/// Numbers of a token inside a perceptron.
const HIDDEN: usize = 2 * WIDTH;

/// The whole, with attention on `A`.
pub struct Network<F: Real, A: Attention<F>> {
    device: A,
    embedding: Linear<F>,
    /// Where a pixel stands: attention itself does not tell. `[64, width]`
    position: Parameter<F>,
    blocks: [Block<F, A::Kept>; 2],
    norm: LayerNorm<F>,
    head: Linear<F>,
}

impl<F: Real, A: Attention<F>> Network<F, A> {
    /// A network that has learned nothing yet. The same seed gives the same one.
    pub fn new(device: A, seed: u64) -> Self {
        let mut rng = Rng(seed);
        let rng = &mut rng;
        Network {
            device,
            embedding: Linear::new(PATCH, WIDTH, rng),
            position: Parameter::random(TOKENS * WIDTH, 0.5, rng),
            // First the 5 x 5 pixels around, then nine of them further apart.
            blocks: [Params::new(5), Params::new(3).dilation(2)].map(|params| Block::new(params, rng)),
            norm: LayerNorm::new(WIDTH),
            head: Linear::new(WIDTH, CLASSES, rng),
        }
    }

    /// The score of each class for each digit, `[digits, 10]`.
    pub fn forward(&mut self, digits: &Digits<F>) -> Result<Vec<F>, Error> {
        let mut tokens = self.embedding.forward(digits.patches());
        for digit in tokens.chunks_exact_mut(TOKENS * WIDTH) {
            add(digit, &self.position.value);
        }
        for block in &mut self.blocks {
            block.forward(&self.device, &mut tokens)?;
        }
        let tokens = self.norm.forward(&tokens);
        let mut means = vec![F::default(); digits.len() * WIDTH];
        for (mean, digit) in means.chunks_exact_mut(WIDTH).zip(tokens.chunks_exact(TOKENS * WIDTH)) {
            digit.chunks_exact(WIDTH).for_each(|token| add(mean, token));
            mean.iter_mut().for_each(|x| *x = *x / F::narrow(TOKENS as f64));
        }
        Ok(self.head.forward(means))
    }

    /// The gradients of all parameters from that of the scores; those of an earlier backward are forgotten.
    pub fn backward(&mut self, d_scores: &[F]) -> Result<(), Error> {
        self.parameters().for_each(|parameter| parameter.gradient.fill(F::default()));
        let d_means = self.head.backward(d_scores);
        let share = |&d: &F| d / F::narrow(TOKENS as f64);
        let d_means = d_means.chunks_exact(WIDTH).map(|d_mean| d_mean.iter().map(share).collect::<Vec<_>>());
        let d_tokens: Vec<F> = d_means.flat_map(|d_token| d_token.repeat(TOKENS)).collect();
        let mut d_tokens = self.norm.backward(&d_tokens);
        for block in self.blocks.iter_mut().rev() {
            block.backward(&self.device, &mut d_tokens)?;
        }
        for d_digit in d_tokens.chunks_exact(TOKENS * WIDTH) {
            add(&mut self.position.gradient, d_digit);
        }
        self.embedding.backward(&d_tokens);
        Ok(())
    }

    /// All that is learned, always in the same order.
    pub fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter<F>> {
        let before = self.embedding.parameters().into_iter().chain([&mut self.position]);
        let blocks = self.blocks.iter_mut().flat_map(Block::parameters);
        let after = self.norm.parameters().into_iter().chain(self.head.parameters());
        before.chain(blocks).chain(after)
    }
}

/// `x += project(attend(norm(x)))`, then `x += narrow(silu(widen(norm(x))))`, for each token.
struct Block<F, K> {
    params: Params<2>,
    attention_norm: LayerNorm<F>,
    qkv: Linear<F>,
    /// Of a forward whose backward has not run.
    kept: Option<K>,
    projection: Linear<F>,
    perceptron_norm: LayerNorm<F>,
    widen: Linear<F>,
    silu: Silu<F>,
    narrow: Linear<F>,
}

impl<F: Real, K> Block<F, K> {
    fn new(params: Params<2>, rng: &mut Rng) -> Self {
        Block {
            params,
            attention_norm: LayerNorm::new(WIDTH),
            qkv: Linear::new(WIDTH, 3 * WIDTH, rng),
            kept: None,
            projection: Linear::new(WIDTH, WIDTH, rng),
            perceptron_norm: LayerNorm::new(WIDTH),
            widen: Linear::new(WIDTH, HIDDEN, rng),
            silu: Silu::default(),
            narrow: Linear::new(HIDDEN, WIDTH, rng),
        }
    }

    fn forward(&mut self, device: &impl Attention<F, Kept = K>, tokens: &mut [F]) -> Result<(), Error> {
        let qkv = self.qkv.forward(self.attention_norm.forward(tokens));
        let (out, kept) = device.forward(&self.params, Qkv::new(qkv, HEADS, HEAD_DIM))?;
        self.kept = Some(kept);
        add(tokens, &self.projection.forward(out));
        let hidden = self.widen.forward(self.perceptron_norm.forward(tokens));
        add(tokens, &self.narrow.forward(self.silu.forward(hidden)));
        Ok(())
    }

    /// From the gradient of what the forward made of the tokens to that of the tokens.
    fn backward(&mut self, device: &impl Attention<F, Kept = K>, d_tokens: &mut [F]) -> Result<(), Error> {
        let d_hidden = self.silu.backward(&self.narrow.backward(d_tokens));
        add(d_tokens, &self.perceptron_norm.backward(&self.widen.backward(&d_hidden)));
        let d_out = self.projection.backward(d_tokens);
        let kept = self.kept.take().expect("a backward follows its forward");
        let d_qkv = device.backward(&self.params, kept, d_out)?.into_numbers();
        add(d_tokens, &self.attention_norm.backward(&self.qkv.backward(&d_qkv)));
        Ok(())
    }

    fn parameters(&mut self) -> impl Iterator<Item = &mut Parameter<F>> {
        let attention =
            [self.attention_norm.parameters(), self.qkv.parameters(), self.projection.parameters()];
        let perceptron =
            [self.perceptron_norm.parameters(), self.widen.parameters(), self.narrow.parameters()];
        attention.into_iter().chain(perceptron).flatten()
    }
}

/// The mean over digits of `-ln` of the probability that each class's score gives the label, and its gradient.
pub fn cross_entropy<F: Real>(scores: &[F], labels: &[u8]) -> (F, Vec<F>) {
    let over_digits = F::narrow(1.0 / labels.len() as f64);
    let mut loss = F::default();
    let mut d_scores = Vec::with_capacity(scores.len());
    for (scores, &label) in scores.chunks_exact(CLASSES).zip(labels) {
        let largest = scores.iter().fold(scores[0], |a, &b| if a < b { b } else { a });
        let denominator = sum(scores.iter().map(|&score| (score - largest).exp()));
        loss += (denominator.ln() + largest - scores[usize::from(label)]) * over_digits;
        d_scores.extend(scores.iter().enumerate().map(|(class, &score)| {
            let wanted = F::narrow(f64::from(u8::from(class == usize::from(label))));
            ((score - largest).exp() / denominator - wanted) * over_digits
        }));
    }
    (loss, d_scores)
}

#[cfg(test)]
mod tests {
    use natten::cpu::Cpu;

    use super::*;

    /// The loss on some digits, in f64.
    fn loss(network: &mut Network<f64, Cpu>, digits: &Digits<f64>) -> f64 {
        cross_entropy(&network.forward(digits).unwrap(), &digits.labels).0
    }

    #[test]
    fn every_gradient_is_what_finite_differences_say() {
        const STEP: f64 = 1e-5;
        let digits = Digits::bundled()[0].pick(&[0, 11, 5]);
        let mut network = Network::<f64, _>::new(Cpu::new(), 7);
        let scores = network.forward(&digits).unwrap();
        network.backward(&cross_entropy(&scores, &digits.labels).1).unwrap();
        let gradients: Vec<Vec<f64>> =
            network.parameters().map(|parameter| parameter.gradient.clone()).collect();
        assert_eq!(gradients.len(), 3 + 2 * 12 + 4);
        // Of each parameter its largest component, which no other term can hide, and one along a random direction.
        for (which, gradient) in gradients.iter().enumerate() {
            let largest =
                (0..gradient.len()).max_by(|&a, &b| gradient[a].abs().total_cmp(&gradient[b].abs()));
            let mut single = vec![0.0; gradient.len()];
            single[largest.expect("no parameter is empty")] = 1.0;
            let mut rng = Rng(which as u64);
            let random: Vec<f64> = gradient.iter().map(|_| rng.symmetric()).collect();
            for direction in [single, random] {
                let mut along = |step: f64| {
                    let parameter = network.parameters().nth(which).expect("counted above");
                    let moved = parameter.value.iter_mut().zip(&direction);
                    moved.for_each(|(value, d)| *value += step * d);
                    loss(&mut network, &digits)
                };
                let measured = (along(STEP) - along(-2.0 * STEP)) / (2.0 * STEP);
                along(STEP);
                let claimed: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
                let scale = gradient.iter().map(|g| g * g).sum::<f64>().sqrt().max(1e-6);
                let error = (measured - claimed).abs() / scale;
                assert!(error < 1e-6, "parameter {which}: {claimed} claimed, {measured} measured");
            }
        }
    }
}
