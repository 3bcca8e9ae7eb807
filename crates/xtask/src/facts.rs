//! What a compiled text says of itself: the numbers that the table takes from here and from nowhere else.

/// How a text begins that needs dynamic shared memory.
const DYNAMIC_SHARED: &str = "// bytes of dynamic shared memory: ";

/// What a launch of the text needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Of the one parameter.
    pub param_bytes: u32,
}

impl Facts {
    /// Nothing where a text has not one entry with launch bounds and one parameter, or does not say how much of the dynamic
    /// shared memory that it declares it needs.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let mut parameters = text.lines().filter(|line| line.starts_with(".param "));
        let parameter = parameters.next()?.rsplit_once('[')?.1.strip_suffix(']')?;
        let threads = text.lines().find_map(|line| line.strip_prefix(".maxntid "))?;
        let shared = text.lines().next()?.strip_prefix(DYNAMIC_SHARED);
        let facts = Facts {
            threads: threads.split(',').map(|side| side.trim().parse::<u32>().ok()).product::<Option<_>>()?,
            shared_bytes: shared.map_or(Some(0), |bytes| bytes.parse().ok())?,
            param_bytes: parameter.parse().ok()?,
        };
        let one_each = parameters.next().is_none() && text.matches(".entry ").count() == 1;
        let says_how_much = text.contains(".extern .shared ") == (facts.shared_bytes > 0);
        (one_each && says_how_much).then_some(facts)
    }
}

/// The text that is kept of what the compiler wrote: with a lower `.version`, without what no assembler reads (comments,
/// indentation, blank lines: a fifth of the text) and one hint that old ones refuse, and with the constant of launch.cuh
/// turned into a comment.
pub(crate) fn tidy(ptx: &str, version: &str) -> String {
    let mut out = String::with_capacity(ptx.len());
    for line in ptx.lines() {
        let line = line.split("//").next().unwrap_or_default().trim();
        if line.is_empty() || line.starts_with(".pragma \"used_bytes_mask") {
            continue;
        }
        if let Some(bytes) = dynamic_shared(line) {
            out.insert_str(0, &format!("{DYNAMIC_SHARED}{bytes}\n"));
            continue;
        }
        if line.starts_with(".version") {
            out.push_str(&format!(".version {version}"));
        } else {
            out.push_str(&line.replace('\t', " "));
        }
        out.push('\n');
    }
    out
}

/// The value in `.const .align 4 .u32 natten_dynamic_shared = 25344;`.
fn dynamic_shared(line: &str) -> Option<&str> {
    line.split_once(" natten_dynamic_shared = ")?.1.strip_suffix(';')
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMPILED: &str = "// by a compiler\n.version 8.8\n.target sm_80\n\n\
        .const .align 4 .u32 natten_dynamic_shared = 1234;\n.extern .shared .align 16 .b8 shared[];\n\
        .visible .entry f(\n\t.param .align 8 .b8 f_param_0[56]\n)\n.maxntid 64, 2, 1\n{\n\tret;  // over\n}\n";

    #[test]
    fn facts_are_the_texts() {
        let text = tidy(COMPILED, "7.0");
        assert!(text.starts_with(
            "// bytes of dynamic shared memory: 1234\n.version 7.0\n.target sm_80\n.extern .shared"
        ));
        let facts = Facts { threads: 128, shared_bytes: 1234, param_bytes: 56 };
        assert_eq!(Facts::of(&text), Some(facts));
        let without = tidy(&COMPILED.replace(" natten_dynamic_shared = 1234", " another"), "7.0");
        assert_eq!(Facts::of(&without), None);
        let without = without.replace(".extern .shared", ".shared");
        assert_eq!(Facts::of(&without), Some(Facts { shared_bytes: 0, ..facts }));
    }

    #[test]
    fn a_text_that_says_too_little_has_none() {
        for missing in
            [".maxntid 64, 2, 1\n", "\t.param .align 8 .b8 f_param_0[56]\n", ".visible .entry f(\n"]
        {
            assert_eq!(Facts::of(&tidy(&COMPILED.replace(missing, ""), "7.0")), None, "{missing}");
        }
    }
}
