//! PTX text, of any bytes: an error that names a line of it, or a module.

use natten_emulator::Module;

/// Parses the bytes as text.
pub fn body(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    match Module::parse(&text) {
        Ok(module) => {
            for entry in module.entries() {
                assert!(entry.instruction_count() <= text.len());
                assert!(module.entry(&entry.name).is_some());
            }
        }
        Err(error) => {
            let lines = text.matches('\n').count() + 1;
            assert!((1..=lines).contains(&(error.line as usize)), "line {} of {lines}", error.line);
            assert!(!error.to_string().is_empty());
        }
    }
}
