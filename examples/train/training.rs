//! Training: batches in a random order, Adam, and how many of the held-out digits are read right.

use natten::Error;

use crate::attention::Attention;
use crate::digits::{CLASSES, Digits, Rng};
use crate::layers::{Parameter, Real};
use crate::network::{Network, cross_entropy};

/// How to train.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Times that each digit is learned from.
    pub epochs: usize,
    /// Digits of a step.
    pub batch: usize,
    /// Adam's rate at the start; it falls to zero along a cosine.
    pub rate: f64,
    /// Where weights and the order of digits come from.
    pub seed: u64,
}

impl Settings {
    /// Steps of so many digits. What is left over in an epoch takes part in another.
    pub fn steps(&self, digits: usize) -> usize {
        self.epochs * (digits / self.batch)
    }
}

/// A network in training.
pub struct Training<F: Real, A: Attention<F>> {
    network: Network<F, A>,
    adam: Adam<F>,
    settings: Settings,
    digits: Digits<F>,
    /// The digits that the epoch still has to come to.
    order: Vec<usize>,
    rng: Rng,
    step: usize,
}

impl<F: Real, A: Attention<F>> Training<F, A> {
    /// A start.
    pub fn new(device: A, digits: Digits<F>, settings: Settings) -> Self {
        let mut network = Network::new(device, settings.seed);
        let adam = Adam::new(network.parameters());
        Training { network, adam, settings, digits, order: Vec::new(), rng: Rng(!settings.seed), step: 0 }
    }

    /// Numbers that are learned.
    pub fn parameters(&mut self) -> usize {
        self.network.parameters().map(|parameter| parameter.value.len()).sum()
    }

    /// Learns from the next batch. Returns the loss before.
    pub fn step(&mut self) -> Result<F, Error> {
        if self.order.len() < self.settings.batch {
            self.order = self.rng.shuffled(self.digits.len());
        }
        let batch = self.digits.pick(&self.order.split_off(self.order.len() - self.settings.batch));
        let scores = self.network.forward(&batch)?;
        let (loss, d_scores) = cross_entropy(&scores, &batch.labels);
        self.network.backward(&d_scores)?;
        let progress = self.step as f64 / self.settings.steps(self.digits.len()).max(1) as f64;
        let rate = self.settings.rate * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos());
        self.adam.step(self.network.parameters(), rate);
        self.step += 1;
        Ok(loss)
    }

    /// The share of digits that are read right.
    pub fn accuracy(&mut self, digits: &Digits<F>) -> Result<f64, Error> {
        let mut right = 0;
        let all: Vec<usize> = (0..digits.len()).collect();
        for some in all.chunks(self.settings.batch) {
            let batch = digits.pick(some);
            let scores = self.network.forward(&batch)?;
            let read = scores.chunks_exact(CLASSES).map(best);
            right += read.zip(&batch.labels).filter(|&(read, &label)| read == usize::from(label)).count();
        }
        Ok(right as f64 / digits.len() as f64)
    }
}

/// The class with the largest score.
fn best<F: Real>(scores: &[F]) -> usize {
    (1..scores.len()).fold(0, |best, class| if scores[best] < scores[class] { class } else { best })
}

/// Adam (Kingma and Ba, 2015): steps along the mean gradient, over the root of the mean square of each component.
struct Adam<F> {
    /// Of each parameter, running means of the gradient and of its square.
    means: Vec<[Vec<F>; 2]>,
    steps: i32,
}

impl<F: Real> Adam<F> {
    const MEMORY: [f64; 2] = [0.9, 0.999];

    fn new<'a>(parameters: impl Iterator<Item = &'a mut Parameter<F>>) -> Self {
        let zeros = |parameter: &mut Parameter<F>| vec![F::default(); parameter.value.len()];
        Adam { means: parameters.map(|parameter| [(); 2].map(|()| zeros(parameter))).collect(), steps: 0 }
    }

    fn step<'a>(&mut self, parameters: impl Iterator<Item = &'a mut Parameter<F>>, rate: f64) {
        self.steps += 1;
        // Means that begin at zero are too small at first, by this much.
        let [mean_share, square_share] = Self::MEMORY.map(|memory| 1.0 - memory.powi(self.steps));
        let rate = F::narrow(rate / mean_share);
        let over_share = F::narrow(1.0 / square_share);
        let [keep_mean, keep_square] = Self::MEMORY.map(F::narrow);
        let one = F::narrow(1.0);
        for (parameter, [mean, square]) in parameters.zip(&mut self.means) {
            for (i, (value, &gradient)) in parameter.value.iter_mut().zip(&parameter.gradient).enumerate() {
                mean[i] = keep_mean * mean[i] + (one - keep_mean) * gradient;
                square[i] = keep_square * square[i] + (one - keep_square) * gradient * gradient;
                let root = (square[i] * over_share).sqrt() + F::narrow(1e-8);
                *value = *value - rate * mean[i] / root;
            }
        }
    }
}
