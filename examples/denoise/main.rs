//! Denoises a photograph: non-local means, which is neighborhood attention on patches (see `nlm.rs`).
//!
//! `cargo run --release --example denoise` takes the bundled photograph; `-- my.jpg --noise 0` takes your own as
//! noisy as it is.

mod nlm;
mod picture;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};

use nlm::Settings;
use picture::{Picture, PictureError};

/// Eileen Collins by NASA, in the public domain: 256 x 256 pixels of the portrait.
const BUNDLED: &[u8] = include_bytes!("../data/astronaut.png");

/// Denoise a photograph with neighborhood attention over its patches.
#[derive(Parser)]
struct Args {
    /// PNG or JPEG to take [default: a bundled photograph].
    picture: Option<PathBuf>,
    /// Standard deviation of the noise to add, out of 255. With 0 the picture is taken as noisy as it is and the
    /// level is estimated.
    #[arg(long, default_value_t = 25.0, value_parser = non_negative)]
    noise: f32,
    /// Seed of the noise.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Side of the window of pixels averaged.
    #[arg(long, default_value_t = 21)]
    window: usize,
    /// Step between the window's pixels.
    #[arg(long, default_value_t = 1)]
    dilation: usize,
    /// Side of the patches compared, an odd number.
    #[arg(long, default_value_t = 5, value_parser = odd)]
    patch: usize,
    /// How strongly to denoise: factor on the distance at which patches still count as alike.
    #[arg(long, default_value_t = 1.0, value_parser = positive)]
    strength: f32,
    /// Folder to write noisy.png and denoised.png to.
    #[arg(long, default_value = ".")]
    out: PathBuf,
    /// Also write the noisy, the denoised and the clean picture next to each other to this PNG file.
    #[arg(long)]
    side_by_side: Option<PathBuf>,
}

fn non_negative(text: &str) -> Result<f32, String> {
    let value = text.parse().ok().filter(|value: &f32| value.is_finite() && *value >= 0.0);
    value.ok_or_else(|| "a number, 0 or larger, is needed".to_owned())
}

fn positive(text: &str) -> Result<f32, String> {
    non_negative(text)
        .ok()
        .filter(|value| *value > 0.0)
        .ok_or_else(|| "a number above 0 is needed".to_owned())
}

fn odd(text: &str) -> Result<usize, String> {
    let value = text.parse().ok().filter(|value: &usize| value % 2 == 1 && *value < 64);
    value.ok_or_else(|| "an odd number below 64 is needed".to_owned())
}

#[derive(Debug, thiserror::Error)]
enum DenoiseError {
    #[error(transparent)]
    Picture(#[from] PictureError),
    #[error(transparent)]
    Natten(#[from] natten::Error),
    #[error("this picture shows no noise to remove; state the level with --noise")]
    NoNoise,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(args: &Args) -> Result<(), DenoiseError> {
    let given = match &args.picture {
        Some(path) => Picture::read(path)?,
        None => Picture::decode(BUNDLED)?,
    };
    let is_noisy_already = args.noise == 0.0;
    let sigma = if is_noisy_already { given.estimate_noise() } else { args.noise / 255.0 };
    if sigma <= 0.0 {
        return Err(DenoiseError::NoNoise);
    }
    let noisy = if is_noisy_already { given.clone() } else { given.with_noise(sigma, args.seed) };
    let settings = Settings {
        window: args.window,
        dilation: args.dilation,
        patch: args.patch,
        h_squared: args.strength * h_squared(sigma, args.patch),
    };
    let problem = settings.problem(&noisy)?;
    noisy.write(&args.out.join("noisy.png"))?;
    let bar = progress(noisy.height);
    let (denoised, attending) = nlm::denoise(&noisy, &settings, |rows| bar.set_position(rows as u64))?;
    bar.finish_and_clear();
    denoised.write(&args.out.join("denoised.png"))?;
    if let Some(path) = &args.side_by_side {
        Picture::side_by_side(&[&noisy, &denoised, &given]).write(path)?;
    }
    report(args, &settings, &problem, attending);
    if is_noisy_already {
        println!("noise     estimated sigma {:.1} of 255", sigma * 255.0);
    } else {
        let (before, after) = (noisy.psnr(&given), denoised.psnr(&given));
        println!("PSNR      {before:.2} dB before, {after:.2} dB after: {:+.2} dB", after - before);
    }
    println!("wrote     noisy.png and denoised.png in {}", args.out.display());
    Ok(())
}

/// Two noisy copies of one patch are `2 n sigma^2` apart for `n` components; `h^2` is 0.22 of that,
/// found by trying on the bundled photograph.
fn h_squared(sigma: f32, patch: usize) -> f32 {
    let components = (3 * patch * patch) as f32;
    0.45 * components * sigma * sigma
}

fn report(args: &Args, settings: &Settings, problem: &natten::Problem, attending: Duration) {
    let [_, rows, columns] = problem.axes().map(|axis| axis.query_extent);
    let seconds = attending.as_secs_f64();
    println!("picture   {columns} x {rows}: {} tokens", problem.query_tokens());
    println!(
        "window    {0} x {0} pixels, dilation {1}; head_dim {2}, head_dim_v 3",
        args.window,
        args.dilation,
        settings.head_dim()
    );
    println!(
        "attention {seconds:.3} s, {:.1} GFLOP, {:.1} GFLOP/s",
        problem.useful_flops() * 1e-9,
        problem.useful_flops() * 1e-9 / seconds
    );
}

/// A bar on standard error that moves while a band is worked on; hidden when that is no terminal.
fn progress(rows: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {bar:40} {pos}/{len} rows, {elapsed}");
    let bar =
        ProgressBar::new(rows as u64).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
