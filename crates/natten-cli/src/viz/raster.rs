//! A scene as PNG: filled rectangles, and letters from a table of bitmaps.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

use super::font;
use super::scene::{Rect, Scene, Word};
use crate::error::CliError;

/// Encodes a scene.
pub fn to_png(scene: &Scene) -> Result<Vec<u8>, CliError> {
    let mut image = RgbImage::from_pixel(scene.width as u32, scene.height as u32, Rgb([255; 3]));
    scene.rects.iter().for_each(|rect| fill(&mut image, rect));
    scene.words.iter().for_each(|word| write(&mut image, word));
    let mut bytes = Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

fn fill(image: &mut RgbImage, rect: &Rect) {
    for y in 0..rect.height {
        for x in 0..rect.width {
            let edge = x.min(y).min(rect.width - 1 - x).min(rect.height - 1 - y);
            let color = if edge < 2 { rect.border.unwrap_or(rect.fill) } else { rect.fill };
            put(image, rect.x + x, rect.y + y, color);
        }
    }
}

fn write(image: &mut RgbImage, word: &Word) {
    for (i, letter) in word.text.chars().enumerate() {
        for (y, row) in font::rows(letter).iter().enumerate() {
            for x in (0..8).filter(|x| row >> x & 1 == 1) {
                put(image, word.x + 8 * i + x, word.y + y, word.color);
            }
        }
    }
}

fn put(image: &mut RgbImage, x: usize, y: usize, color: [u8; 3]) {
    if let Some(pixel) = image.get_pixel_mut_checked(x as u32, y as u32) {
        *pixel = Rgb(color);
    }
}
