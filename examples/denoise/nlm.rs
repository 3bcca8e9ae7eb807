//! Non-local means as neighborhood attention.
//!
//! Non-local means replaces a pixel by the mean of the pixels around it, each weighted by how alike the patches
//! are: `exp(-|f_i - f_j|^2 / 2h^2)`. That is a softmax over
//!
//! ```text
//! -|f_i - f_j|^2 / 2h^2  =  (f_i . f_j - |f_j|^2 / 2) / h^2  -  |f_i|^2 / 2h^2
//! ```
//!
//! where the last term is the same for all keys of a query and cancels. The rest is one dot product: query
//! `[f, 1]`, key `[f, -|f|^2 / 2]`, scale `1 / h^2`, and the value is the pixel's colour.

use std::ops::Range;
use std::time::{Duration, Instant};

use natten::{Error, Inputs, Layout, Params, Problem, Tensor, TensorError, na2d};

use crate::picture::Picture;

/// Most bytes of queries and keys held at once; larger pictures are worked on in bands of rows.
const BAND_BYTES: usize = 256 << 20;

/// What is compared, with what, and how strictly.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Side of the window of pixels averaged.
    pub window: usize,
    /// Step between them.
    pub dilation: usize,
    /// Side of the patches compared; odd.
    pub patch: usize,
    /// `h^2` above: the squared distance of patches that still count as alike.
    pub h_squared: f32,
}

impl Settings {
    fn params(&self) -> Params<2> {
        Params::new(self.window).dilation(self.dilation).scale(self.h_squared.recip())
    }

    /// Components of a query and a key.
    pub fn head_dim(&self) -> usize {
        3 * self.patch * self.patch + 1
    }

    /// The problem that a whole picture poses, for validation and operation counts.
    pub fn problem(&self, picture: &Picture) -> Result<Problem, Error> {
        let layout = |width: usize| Layout::contiguous(&[1, picture.height, picture.width, 1, width]);
        let query = layout(self.head_dim())?;
        let inputs = Inputs::new(query, query, layout(3)?);
        Ok(Problem::new(&self.params().to_dyn(), &inputs, natten::ElementType::F32)?)
    }

    /// Rows that the windows of `rows` reach, in a picture of `height` rows.
    ///
    /// Windows shift inwards at the border, so the first rows look further down than the others. Starting at a
    /// multiple of the dilation keeps every pixel's residue.
    fn reach(&self, rows: &Range<usize>, height: usize) -> Range<usize> {
        let (side, whole) = (self.window / 2 * self.dilation, self.window * self.dilation);
        let start = rows.start.saturating_sub(side).min(height.saturating_sub(whole + self.dilation));
        let start = start / self.dilation * self.dilation;
        // At least a window's worth, or the band would be too small for the other residues.
        let end = (rows.end + side).max(start + whole + self.dilation).min(height);
        start..end
    }

    /// Rows of a picture to take at once.
    fn band_rows(&self, width: usize) -> usize {
        let bytes_per_row = 2 * 4 * self.head_dim() * width;
        let halo = self.window * self.dilation;
        (BAND_BYTES / bytes_per_row).saturating_sub(halo).max(halo).max(1)
    }
}

/// Denoises a picture. Calls `progress` with the rows done so far; also returns the time spent attending.
pub fn denoise(
    noisy: &Picture,
    settings: &Settings,
    progress: impl Fn(usize),
) -> Result<(Picture, Duration), Error> {
    settings.problem(noisy)?;
    in_bands(noisy, settings, settings.band_rows(noisy.width), progress)
}

fn in_bands(
    noisy: &Picture,
    settings: &Settings,
    band_rows: usize,
    progress: impl Fn(usize),
) -> Result<(Picture, Duration), Error> {
    let mut clean = noisy.clone();
    let mut attending = Duration::ZERO;
    for start in (0..noisy.height).step_by(band_rows) {
        let rows = start..(start + band_rows).min(noisy.height);
        let reach = settings.reach(&rows, noisy.height);
        let (query, key) = patches(noisy, settings.patch, &reach)?;
        let row = noisy.width * 3;
        let colors = noisy.colors[reach.start * row..reach.end * row].to_vec();
        let value = Tensor::from_vec(&[1, reach.len(), noisy.width, 1, 3], colors)?;
        let began = Instant::now();
        let out = na2d(&query, &key, &value, &settings.params())?;
        attending += began.elapsed();
        let inner = (rows.start - reach.start) * row..(rows.end - reach.start) * row;
        clean.colors[rows.start * row..rows.end * row].copy_from_slice(&out.as_slice()[inner]);
        progress(rows.end);
    }
    Ok((clean, attending))
}

/// Queries `[f, 1]` and keys `[f, -|f|^2 / 2]` of some rows. Patches reach past the border by reflection.
fn patches(
    picture: &Picture,
    patch: usize,
    rows: &Range<usize>,
) -> Result<(Tensor<f32>, Tensor<f32>), TensorError> {
    let head_dim = 3 * patch * patch + 1;
    let radius = patch / 2;
    let mut query = Vec::with_capacity(rows.len() * picture.width * head_dim);
    let mut key = Vec::with_capacity(query.capacity());
    for y in rows.clone() {
        for x in 0..picture.width {
            let first = query.len();
            for dy in 0..patch {
                let from = reflect(y + dy, radius, picture.height) * picture.width;
                for dx in 0..patch {
                    let at = (from + reflect(x + dx, radius, picture.width)) * 3;
                    // Centred on grey: smaller norms, less rounding. Differences do not change.
                    query.extend(picture.colors[at..at + 3].iter().map(|color| color - 0.5));
                }
            }
            let norm: f32 = query[first..].iter().map(|f| f * f).sum();
            key.extend_from_slice(&query[first..]);
            query.push(1.0);
            key.push(-0.5 * norm);
        }
    }
    let shape = [1, rows.len(), picture.width, 1, head_dim];
    Ok((Tensor::from_vec(&shape, query)?, Tensor::from_vec(&shape, key)?))
}

/// `at - radius`, reflected at 0 and at the last index.
fn reflect(at: usize, radius: usize, extent: usize) -> usize {
    let index = at.abs_diff(radius);
    let last = extent - 1;
    if index > last { (2 * last).saturating_sub(index) } else { index }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_give_what_the_whole_gives() {
        let picture = Picture { height: 29, width: 17, colors: vec![0.5; 29 * 17 * 3] }.with_noise(0.2, 3);
        for (window, dilation) in [(5, 1), (4, 2), (3, 4), (9, 3), (29, 1)] {
            let window = window.min(17 / dilation);
            let settings = Settings { window, dilation, patch: 3, h_squared: 0.5 };
            let (whole, _) = in_bands(&picture, &settings, 29, |_| ()).unwrap();
            for band_rows in [1, 4, 7, 13] {
                let (banded, _) = in_bands(&picture, &settings, band_rows, |_| ()).unwrap();
                let apart = whole.colors.iter().zip(&banded.colors).map(|(a, b)| (a - b).abs());
                assert!(apart.fold(0.0, f32::max) < 1e-6, "window {window} dilation {dilation} {band_rows}");
            }
        }
    }
}
