//! Pictures as planes of f32 colours: reading, writing, noise and how far two are apart.

use std::path::{Path, PathBuf};

use image::{ImageError, Rgb, RgbImage};

/// An RGB picture; components lie in 0 to 1, noise may push them out.
#[derive(Clone, Debug)]
pub struct Picture {
    pub height: usize,
    pub width: usize,
    /// `[height, width, 3]`
    pub colors: Vec<f32>,
}

/// Why a picture cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: ImageError },
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: ImageError },
}

impl Picture {
    /// Reads a PNG or JPEG file.
    pub fn read(path: &Path) -> Result<Self, PictureError> {
        let failed = |source| PictureError::Read { path: path.to_owned(), source };
        let reader = image::ImageReader::open(path).and_then(|reader| reader.with_guessed_format());
        let image = reader.map_err(|error| failed(error.into()))?.decode().map_err(failed)?;
        Ok(Self::from_image(&image.to_rgb8()))
    }

    /// Decodes a picture in memory.
    pub fn decode(bytes: &[u8]) -> Result<Self, PictureError> {
        let failed = |source| PictureError::Read { path: "the bundled picture".into(), source };
        Ok(Self::from_image(&image::load_from_memory(bytes).map_err(failed)?.to_rgb8()))
    }

    fn from_image(image: &RgbImage) -> Self {
        let colors = image.as_raw().iter().map(|&byte| f32::from(byte) / 255.0).collect();
        Picture { height: image.height() as usize, width: image.width() as usize, colors }
    }

    /// Writes a PNG file: under a temporary name first, so that an interruption leaves no half of one.
    pub fn write(&self, path: &Path) -> Result<(), PictureError> {
        let failed = |source| PictureError::Write { path: path.to_owned(), source };
        let image = RgbImage::from_fn(self.width as u32, self.height as u32, |x, y| {
            let at = (y as usize * self.width + x as usize) * 3;
            Rgb([0, 1, 2].map(|c| (self.colors[at + c].clamp(0.0, 1.0) * 255.0).round() as u8))
        });
        let temporary = path.with_extension("png.part");
        image.save_with_format(&temporary, image::ImageFormat::Png).map_err(failed)?;
        std::fs::rename(&temporary, path).map_err(|error| failed(error.into()))
    }

    /// Adds normal noise of standard deviation `sigma` to every component. The same seed gives the same noise.
    pub fn with_noise(&self, sigma: f32, seed: u64) -> Self {
        let mut normal = Normal { state: seed };
        let colors = self.colors.iter().map(|color| color + sigma * normal.sample()).collect();
        Picture { colors, ..*self }
    }

    /// An estimate of the noise's standard deviation, after Immerkaer (1996): the mean absolute response to a
    /// mask that ignores constant and linear parts of the picture.
    pub fn estimate_noise(&self) -> f32 {
        const MASK: [[f32; 3]; 3] = [[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]];
        if self.height < 3 || self.width < 3 {
            return 0.0;
        }
        let mut sum = 0.0f64;
        for y in 1..self.height - 1 {
            for x in 1..self.width - 1 {
                for c in 0..3 {
                    let color =
                        |dy: usize, dx: usize| self.colors[((y + dy - 1) * self.width + x + dx - 1) * 3 + c];
                    let response: f32 = (0..9).map(|i| MASK[i / 3][i % 3] * color(i / 3, i % 3)).sum();
                    sum += f64::from(response.abs());
                }
            }
        }
        let count = 3 * (self.height - 2) * (self.width - 2);
        ((std::f64::consts::PI / 2.0).sqrt() / 6.0 * sum / count as f64) as f32
    }

    /// Peak signal-to-noise ratio against `clean`, in decibels, of what an 8-bit file would hold.
    pub fn psnr(&self, clean: &Picture) -> f64 {
        let squares = self.colors.iter().zip(&clean.colors).map(|(noisy, clean)| {
            let rounded = (noisy.clamp(0.0, 1.0) * 255.0).round() / 255.0;
            f64::from(rounded - clean).powi(2)
        });
        -10.0 * (squares.sum::<f64>() / self.colors.len() as f64).log10()
    }

    /// The pictures next to each other with a white gap; they must be of one size.
    pub fn side_by_side(pictures: &[&Picture]) -> Picture {
        const GAP: usize = 6;
        let (height, width) = (pictures[0].height, pictures[0].width);
        let total = pictures.len() * (width + GAP) - GAP;
        let mut colors = vec![1.0; height * total * 3];
        for (i, picture) in pictures.iter().enumerate() {
            for y in 0..height {
                let to = (y * total + i * (width + GAP)) * 3;
                let from = &picture.colors[y * width * 3..][..width * 3];
                colors[to..to + width * 3].copy_from_slice(from);
            }
        }
        Picture { height, width: total, colors }
    }
}

/// Normal numbers from SplitMix64 and the Box-Muller transform: no dependency, the same on every machine.
struct Normal {
    state: u64,
}

impl Normal {
    fn sample(&mut self) -> f32 {
        let (u, v) = (self.uniform(), self.uniform());
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    }

    /// In (0, 1].
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64 + f64::EPSILON / 2.0
    }
}
