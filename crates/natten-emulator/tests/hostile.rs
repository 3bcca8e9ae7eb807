//! Text that is no PTX, or nearly some: errors, never panics. The same body runs under cargo-fuzz (fuzz/README.md).

#[path = "../../natten-core/tests/hostile/edits.rs"]
mod edits;
#[path = "hostile/ptx.rs"]
mod ptx;

use std::sync::LazyLock;

use natten_emulator::Module;
use proptest::prelude::*;

static CORPUS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| {
    let mut corpus = edits::corpus("ptx");
    corpus.push(include_bytes!("hostile/seed.ptx").to_vec());
    corpus.push(include_bytes!("blackwell/product.ptx").to_vec());
    corpus
});

/// What means something in PTX, or comes near it.
const WORDS: [&str; 40] = [
    "{",
    "}",
    "[",
    "]",
    "(",
    ")",
    "<",
    ">",
    ";",
    ",",
    ":",
    "!",
    "@",
    "@!",
    "|",
    "+",
    "-",
    "_",
    "%",
    "\"",
    "//",
    "/*",
    "*/",
    "\n",
    "é",
    "0x",
    "0f",
    "4294967295",
    "18446744073709551615",
    "-9223372036854775808",
    ".align 2147483648",
    ".b8 a[4294967295]",
    ".reg .b32 %r<4294967295>",
    ".shared",
    ".local",
    ".param",
    ".pred",
    "%r1",
    ".v4",
    "{{{{{{",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 6_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn edited_texts(from in any::<usize>(), edits in prop::collection::vec(edits::edit(), 1..5)) {
        let mut data = CORPUS[from % CORPUS.len()].clone();
        edits.iter().for_each(|edit| edit.apply(&mut data, &WORDS));
        ptx::body(&data);
    }

    #[test]
    fn any_text(data in prop::collection::vec(any::<u8>(), 0..200)) {
        ptx::body(&data);
    }

    #[test]
    fn any_words(words in prop::collection::vec(0..WORDS.len(), 0..60)) {
        let mut text = ".version 7.0\n.target sm_80\n.address_size 64\n".to_owned();
        words.iter().for_each(|&word| text += WORDS[word]);
        ptx::body(text.as_bytes());
    }
}

#[test]
fn the_corpus_holds() {
    CORPUS.iter().for_each(|data| ptx::body(data));
    assert!(Module::parse(include_str!("hostile/seed.ptx")).is_ok());
}

/// What would take a stack, a memory or an address space.
#[test]
fn text_without_measure_is_refused() {
    let kernel = |body: &str| {
        format!(".version 7.0\n.target sm_80\n.address_size 64\n.visible .entry k()\n{{\n{body}\n}}\n")
    };
    let refused = |text: String| Module::parse(&text).expect_err(&text[..text.len().min(200)]).to_string();
    assert!(refused(kernel(&format!("mov.u32 {}", "!".repeat(1 << 20)))).contains("nest less deep"));
    assert!(refused(kernel(&format!("mov.u32 {}", "{".repeat(1 << 20)))).contains("nest less deep"));
    assert!(refused(kernel(".reg .b32 %a<65000>;\n.reg .b32 %b<65000>;")).contains("65536 registers"));
    let branches = "bra L;\n".repeat(1 << 15);
    assert!(refused(kernel(&format!(".reg .b32 %a<65000>;\nL:\n{branches}"))).contains("65000 registers"));
    for space in ["shared", "local"] {
        for size in ["4294967295", "1073741825"] {
            assert!(refused(kernel(&format!(".{space} .b8 a[{size}];"))).contains("1 GiB"));
        }
        let twice = format!(".{space} .b8 a[1000000000];\n.{space} .b8 b[1000000000];");
        assert!(refused(kernel(&twice)).contains("1 GiB"));
        assert!(
            refused(kernel(&format!(".{space} .b8 a[9];\n.{space} .align 2147483648 .b8 b[1];")))
                .contains("1 GiB")
        );
    }
    assert!(refused(".shared .b8 a[4294967295];".to_owned()).contains("1 GiB"));
    assert!(refused(".global .b64 a[4294967295];".to_owned()).contains("1 GiB"));
    assert!(
        refused(".visible .entry k(.param .b8 a[4294967295], .param .b64 b) {}".to_owned()).contains("1 GiB")
    );
    assert!(refused(".func f é".to_owned()).contains("a function body"));
}
