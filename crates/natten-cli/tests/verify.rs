//! `natten verify` on golden cases made here, on broken files, and on the repository's own when they are there.

mod support;

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::Dtype;
use serde_json::json;
use support::{Case, arguments, folder, json_lines, natten, refuse, skip, succeed, text};

/// Arguments with some changed.
fn changed(changes: serde_json::Value) -> serde_json::Value {
    let mut all = arguments();
    for (key, value) in changes.as_object().unwrap() {
        all[key] = value.clone();
    }
    all
}

#[test]
fn solved_cases_pass_on_every_backend() {
    let folder = folder("verify_pass");
    let cases = [
        ("f32", arguments(), Dtype::F32),
        ("f64", arguments(), Dtype::F64),
        ("f16", arguments(), Dtype::F16),
        ("bf16", arguments(), Dtype::BF16),
        (
            "one",
            changed(json!({"token_shape": [1, 1], "kernel_size": [1, 1], "stride": [1, 1],
            "dilation": [1, 1], "head_dim": 1, "head_dim_v": null})),
            Dtype::F32,
        ),
        ("zero", changed(json!({"scale": 0.0, "additional": 130})), Dtype::F32),
        ("negative", changed(json!({"scale": -0.3, "additional": 0})), Dtype::F32),
        ("empty", changed(json!({"batch": 0})), Dtype::F32),
        // Nothing to do, however many tokens there would be.
        ("vast", changed(json!({"batch": 0, "token_shape": [1u64 << 40, 6]})), Dtype::F32),
    ];
    for (name, arguments, dtype) in cases {
        let case = Case::solved(arguments, dtype);
        std::fs::write(folder.join(name).with_extension("safetensors"), case.bytes()).unwrap();
    }
    for backend in ["cpu", "reference"] {
        let output = natten(&["verify", folder.to_str().unwrap(), "--backend", backend, "--json"]);
        let lines = json_lines(&text(&output.stdout));
        assert!(output.status.success(), "{backend}: {lines:#?}");
        assert_eq!(lines.len(), 10);
        assert_eq!(lines[9]["summary"]["passed"], 9);
        let f32_case = lines.iter().find(|line| line["file"].as_str().unwrap().ends_with("/f32.safetensors"));
        assert!(f32_case.unwrap()["errors"]["d_add_v"].is_number());
    }
    let output = natten(&["verify", folder.to_str().unwrap()]);
    let stdout = text(&output.stdout);
    assert!(output.status.success() && stdout.contains("9 passed, 0 failed, 0 broken"), "{stdout}");
    assert!(!stdout.contains('\u{1b}'), "no colours in a pipe");
}

/// A check can ask for kernels, and nothing but the names of those that ran answers it.
#[test]
fn the_kernels_that_ran_are_named_and_can_be_asked_for() {
    let folder = folder("verify_kernels");
    let both = folder.join("both.safetensors");
    std::fs::write(&both, Case::solved(arguments(), Dtype::F32).bytes()).unwrap();
    let mut forward = Case::solved(changed(json!({"additional": 0, "head_dim_v": null})), Dtype::F16);
    forward.tensors.retain(|name, _| !name.starts_with("d_"));
    let alone = folder.join("forward.safetensors");
    std::fs::write(&alone, forward.bytes()).unwrap();
    let empty = folder.join("empty.safetensors");
    std::fs::write(&empty, Case::solved(changed(json!({"batch": 0})), Dtype::F32).bytes()).unwrap();
    let verify = |file: &Path, flags: &str| {
        let line = format!("verify {} --json {flags}", file.display());
        let output = support::run(&line);
        let case = json_lines(&text(&output.stdout)).remove(0);
        (output.status.code(), case)
    };
    let emulated = "--backend emulator --capability 8.0";
    let (_, case) = verify(&both, emulated);
    let names = |pass: &str| -> Vec<String> {
        let names = case["kernels"][pass].as_array().unwrap().iter();
        names.map(|name| name.as_str().unwrap().to_owned()).collect()
    };
    // Rows of 5 floats lie as no other kernel takes them.
    assert_eq!(names("forward"), ["natten_forward_simt_f32_d64_unaligned"], "{case}");
    let backward = names("backward");
    for part in ["delta", "backward_query_simt_f32", "backward_key_simt_f32", "sum_partials"] {
        assert!(backward.iter().any(|kernel| kernel.contains(part)), "{part}: {backward:?}");
    }
    let (_, case) = verify(&alone, emulated);
    assert!(case["kernels"]["forward"][0].as_str().unwrap().contains("_f16_"), "{case}");
    assert_eq!(case["kernels"]["backward"], json!([]));
    let (_, case) = verify(&empty, emulated);
    assert_eq!(case["kernels"], json!({"forward": [], "backward": []}));
    let (_, case) = verify(&both, "--isa scalar");
    assert_eq!(case["kernels"], json!({"forward": ["cpu_scalar"], "backward": ["cpu_scalar"]}));
    assert_eq!(verify(&both, "--backend reference").1["kernels"]["forward"][0], "reference");

    let expect = |file: &Path, flags: &str, expected: Option<&str>| {
        let (code, case) = verify(file, flags);
        let status = if expected.is_none() { "passed" } else { "failed" };
        assert_eq!(
            (code, &case["status"]),
            (Some(i32::from(expected.is_some())), &json!(status)),
            "{flags}: {case}"
        );
        let reason = case["reason"].as_str().unwrap_or_default();
        assert!(reason.contains(expected.unwrap_or_default()), "{flags}: {case}");
    };
    let asked = |flags: &str| format!("{emulated} {flags}");
    expect(&both, &asked("--expect-kernel simt --expect-backward-kernel query_simt"), None);
    expect(&both, &asked("--expect-kernel sm80"), Some("the forward ran on natten_forward_simt"));
    expect(&both, &asked("--expect-kernel simt --expect-backward-kernel sm90"), Some("sm90 was expected"));
    // Nothing computes gradients that no file asks for, nor the output of no query.
    expect(&alone, &asked("--expect-kernel f16 --expect-backward-kernel sm90"), None);
    expect(&empty, &asked("--expect-kernel sm90"), None);
    expect(&both, "--isa scalar --expect-kernel cpu_avx", Some("cpu_scalar"));
    let shown = succeed(&format!("verify {} {emulated}", folder.display()));
    assert!(shown.contains("ran on natten_forward_simt_f32_d64_unaligned: 1\n"), "{shown}");
}

/// What no kernel serves gets a sentence, and every reason on request.
#[test]
fn unsupported_cases_get_a_sentence() {
    let folder = folder("verify_unsupported");
    let file = folder.join("double.safetensors");
    std::fs::write(&file, Case::solved(arguments(), Dtype::F64).bytes()).unwrap();
    let line = format!("verify {} --backend emulator", file.display());
    let run = |flags: &str| {
        let output = support::run(&format!("{line} {flags}"));
        assert_eq!(output.status.code(), Some(1));
        text(&output.stdout)
    };
    let short = run("");
    assert!(short.lines().all(|line| line.len() < 250) && short.lines().count() <= 4, "{short}");
    assert!(short.contains("the tensors are f64; tensors of ") && short.contains(" would serve"), "{short}");
    let long = run("--verbose");
    assert!(long.lines().all(|line| line.len() < 250) && long.lines().count() > 20, "{long}");
    assert!(long.contains("  natten_forward_sm80_f16_d64_q64_k64 "), "{long}");
    let case = json_lines(&run("--json")).remove(0);
    assert!(case["rejected"].as_array().unwrap().len() > 20, "{case}");
}

#[test]
fn wrong_results_fail() {
    let folder = folder("verify_fail");
    let good = Case::solved(arguments(), Dtype::F32);
    for (name, tensor, value) in [
        ("a_out", "out", 7.0),
        ("b_gradient", "d_k", 9.0),
        ("c_nan", "d_v", f32::NAN),
        ("d_infinite", "lse", f32::NEG_INFINITY),
    ] {
        let mut case = good.clone();
        case.poke(tensor, 3, value);
        std::fs::write(folder.join(name).with_extension("safetensors"), case.bytes()).unwrap();
    }
    std::fs::write(folder.join("e_good.safetensors"), good.bytes()).unwrap();
    let output = natten(&["verify", "--json", folder.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1));
    let lines = json_lines(&text(&output.stdout));
    let statuses: Vec<_> = lines[..5].iter().map(|line| line["status"].as_str().unwrap()).collect();
    assert_eq!(statuses, ["failed", "failed", "failed", "failed", "passed"]);
    assert_eq!(lines[2]["errors"]["d_v"], "NaN");
    // A tolerance wide enough lets all but NaN and infinity through.
    let wide = ["--tolerance", "1e9", "--gradient-tolerance", "1e9"];
    let output = natten(&[&["verify", folder.to_str().unwrap()], &wide[..]].concat());
    let stdout = text(&output.stdout);
    assert!(stdout.contains("3 passed, 2 failed, 0 broken"), "{stdout}");
}

#[test]
fn broken_files_are_named_and_the_others_run() {
    let folder = folder("verify_broken");
    let good = Case::solved(arguments(), Dtype::F32);
    let mut expected = Vec::new();
    let mut write = |name: &'static str, bytes: Vec<u8>, reason: &'static str| {
        std::fs::write(folder.join(name).with_extension("safetensors"), bytes).unwrap();
        expected.push((name, reason));
    };
    let without = |name: &str| {
        let mut case = good.clone();
        case.tensors.remove(name);
        case.bytes()
    };
    let with_metadata =
        |text: &str| good.bytes_with(Some(HashMap::from([("problem".to_owned(), text.to_owned())])));
    let with_arguments = |changes| Case { arguments: changed(changes), ..good.clone() }.bytes();
    write("empty", Vec::new(), "no safetensors file");
    write("truncated", good.bytes()[..good.bytes().len() - 9].to_vec(), "no safetensors file");
    write("header", good.bytes()[..40].to_vec(), "no safetensors file");
    write("text", b"not a tensor at all, just text".to_vec(), "no safetensors file");
    write("metadata", good.bytes_with(None), "no key \"problem\"");
    write("json", with_metadata("{\"token_shape\": [5, 6"), "does not parse");
    write("field", with_metadata("{\"token_shape\": [5, 6]}"), "missing field `kernel_size`");
    write("misspelt", include_bytes!("broken/misspelt_scale.safetensors").to_vec(), MISSPELT);
    write(
        "argument",
        with_arguments(json!({"dilations": [1, 3]})),
        "no argument \"dilations\", the nearest is \"dilation\"",
    );
    let twice = arguments().to_string().replacen('{', "{\"scale\":1.0,", 1);
    write("twice", with_metadata(&twice), "duplicate field `scale`");
    let keys = HashMap::from([("Problem".to_owned(), arguments().to_string())]);
    write("key", good.bytes_with(Some(keys)), "no key \"problem\", but \"Problem\"");
    let mut renamed = good.clone();
    let gradient = renamed.tensors.remove("d_v").unwrap();
    renamed.tensors.insert("dv".to_owned(), gradient);
    write("tensor", renamed.bytes(), "no tensor is called \"dv\", the nearest is \"v\"");
    write("sign", with_metadata(&arguments().to_string().replace("[3,2]", "[-3,2]")), "does not parse");
    write("no_out", without("out"), "tensor out is missing");
    write("no_d_out", without("d_out"), "tensor d_out is missing, d_q is a gradient of it");
    write("no_add_k", without("add_k"), "tensor add_k is missing");
    write("shape", with_arguments(json!({"head_dim": 6})), "tensor q has shape [2, 5, 6, 2, 5]");
    write("rank", with_arguments(json!({"stride": [1]})), "stride has 1 entries for 2 token axes");
    let mut integers = good.clone();
    let zeros = natten::Tensor::zeros(&[2, 5, 6, 1, 5]).unwrap();
    integers.put("k", Dtype::I32, &zeros);
    write("integers", integers.bytes(), "tensor k holds I32");
    integers.put("k", Dtype::F16, &zeros);
    write("mixed", integers.bytes(), "tensor k holds f16, q holds f32");
    std::fs::write(folder.join("good.safetensors"), good.bytes()).unwrap();
    let missing = folder.join("missing.safetensors");

    let output = natten(&["verify", "--json", folder.to_str().unwrap(), missing.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stderr), "");
    let lines = json_lines(&text(&output.stdout));
    let line = |name: &str| {
        let end = format!("/{name}.safetensors");
        lines.iter().find(|line| line["file"].as_str().is_some_and(|file| file.ends_with(&end))).unwrap()
    };
    for (name, reason) in &expected {
        assert_eq!(line(name)["status"], "broken", "{name}");
        assert!(line(name)["reason"].as_str().unwrap().contains(reason), "{name}: {}", line(name));
    }
    assert_eq!(line("good")["status"], "passed");
    assert!(line("missing")["reason"].as_str().unwrap().contains("cannot read it"));
    assert_eq!(lines.last().unwrap()["summary"]["broken"], expected.len() + 1);
}

const MISSPELT: &str = "the problem has no argument \"softmax_scale\", the nearest is \"scale\"";

/// Arguments that make no problem are the file's fault, on any backend and whatever the tensors.
#[test]
fn impossible_arguments_are_broken_files() {
    let folder = folder("verify_impossible");
    let good = Case::solved(arguments(), Dtype::F32);
    for (name, changes, rule) in [
        ("wide", json!({"kernel_size": [9, 2]}), "kernel_size 9 x dilation 1 exceeds the token extent 5"),
        ("still", json!({"stride": [0, 1]}), "stride is 0"),
        ("heads", json!({"heads": 3, "heads_kv": 2}), "heads = 3 is not a multiple of heads_kv = 2"),
        ("none", json!({"heads_kv": 0}), "extent 0"),
        ("scale", json!({"scale": 1e39}), "scale is inf"),
        ("huge", json!({"batch": u64::MAX, "head_dim": u64::MAX}), "overflows"),
        (
            "video",
            json!({"token_shape": [5, 6, 1, 1], "kernel_size": [1, 1, 1, 1], "stride": [1, 1, 1, 1],
                "dilation": [1, 1, 1, 1], "is_causal": [false, false, false, false]}),
            "7 axes",
        ),
    ] {
        let case = Case { arguments: changed(changes), ..good.clone() };
        let file = folder.join(name).with_extension("safetensors");
        std::fs::write(&file, case.bytes()).unwrap();
        for backend in ["cpu", "reference"] {
            let output = natten(&["verify", file.to_str().unwrap(), "--backend", backend]);
            let stdout = text(&output.stdout);
            assert_eq!(output.status.code(), Some(2), "{name}: {stdout}");
            assert!(stdout.contains("BROKEN") && stdout.contains(rule), "{name}: {stdout}");
        }
    }
}

/// What only gradients need may be missing where there are none.
#[test]
fn forward_alone_needs_no_gradient_of_the_output() {
    let folder = folder("verify_forward");
    let mut case = Case::solved(arguments(), Dtype::F32);
    case.tensors.retain(|name, _| !name.starts_with("d_"));
    let file = folder.join("forward.safetensors");
    std::fs::write(&file, case.bytes()).unwrap();
    for backend in ["cpu", "reference"] {
        let output = natten(&["verify", file.to_str().unwrap(), "--backend", backend, "--json"]);
        let line = &json_lines(&text(&output.stdout))[0];
        assert_eq!(line["status"], "passed", "{line}");
        assert_eq!(line["errors"].as_object().unwrap().len(), 2, "{line}");
    }
    case.poke("out", 3, 7.0);
    std::fs::write(&file, case.bytes()).unwrap();
    assert_eq!(natten(&["verify", file.to_str().unwrap()]).status.code(), Some(1));
}

/// A pipe without a writer would be waited for, and a device read without an end.
#[cfg(unix)]
#[test]
fn files_that_are_none_are_named_by_their_kind() {
    let folder = folder("verify_kinds");
    let fifo = folder.join("pipe.safetensors");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let socket = folder.join("socket.safetensors");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let link = folder.join("link.safetensors");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    let paths = [fifo.as_path(), &socket, &link, Path::new("/dev/zero")];
    let kinds = ["a FIFO", "a socket", "a character device", "a character device"];
    for (path, kind) in paths.into_iter().zip(kinds) {
        let output = natten(&["verify", path.to_str().unwrap()]);
        let stdout = text(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{stdout}");
        assert!(stdout.contains(&format!("it is {kind}, no regular file")), "{stdout}");
    }
    // A folder's files are looked at the same way.
    let output = natten(&["verify", folder.to_str().unwrap(), "--json"]);
    let summary = json_lines(&text(&output.stdout)).pop().unwrap();
    assert_eq!(summary["summary"]["broken"], 3, "{summary}");
}

/// Names and keys come from others, and a terminal obeys what is printed.
#[cfg(unix)]
#[test]
fn escape_sequences_are_shown_and_not_obeyed() {
    let folder = folder("verify_escapes");
    let good = Case::solved(arguments(), Dtype::F32);
    std::fs::write(folder.join("a\u{1b}[31m\u{9b}2J\nb.safetensors"), good.bytes()).unwrap();
    let hostile = Case { arguments: changed(json!({"\u{1b}[2Jscale": 1.0})), ..good }.bytes();
    std::fs::write(folder.join("key.safetensors"), hostile).unwrap();
    let output = natten(&["verify", folder.to_str().unwrap()]);
    let stdout = text(&output.stdout);
    assert!(!stdout.contains(['\u{1b}', '\u{9b}']), "{stdout:?}");
    assert!(stdout.contains("a\\u{1b}[31m\\u{9b}2J\\nb.safetensors"), "{stdout}");
    assert!(stdout.contains("no argument \"\\u{1b}[2Jscale\""), "{stdout}");
    assert!(!refuse("verify --\u{1b}[31mred").contains('\u{1b}'));
    assert!(refuse("viz -i 9 -o \u{1b}[31m.gif").contains("to \\u{1b}[31m.gif"));
}

/// The GPU kernels on an emulated GPU, and a refusal that names the kernels.
#[cfg(feature = "emulator")]
#[test]
fn an_emulated_gpu_passes() {
    let folder = folder("verify_emulator");
    for (name, dtype) in [("f32", Dtype::F32), ("bf16", Dtype::BF16)] {
        let case = Case::solved(arguments(), dtype);
        std::fs::write(folder.join(name).with_extension("safetensors"), case.bytes()).unwrap();
    }
    let output =
        natten(&["verify", folder.to_str().unwrap(), "--backend", "emulator", "--capability", "9.0"]);
    let stdout = text(&output.stdout);
    assert!(output.status.success() && stdout.contains("2 cases on emulator (emulated sm_90)"), "{stdout}");
    let case = Case::solved(arguments(), Dtype::F64);
    let file = folder.join("f64.safetensors");
    std::fs::write(&file, case.bytes()).unwrap();
    let output = natten(&["verify", file.to_str().unwrap(), "--backend", "emulator"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stdout).contains("f64"), "{}", text(&output.stdout));
    assert!(refuse("verify x --backend emulator --capability 8").contains("8.0"));
}

#[test]
fn bad_arguments_are_refused() {
    assert!(refuse("verify").contains("FILE_OR_FOLDER"));
    assert!(refuse("verify x --backend tpu").contains("tpu"));
    assert!(refuse("verify x --tolerance -1").contains("-1"));
    assert!(refuse("verify x --isa mmx").contains("mmx"));
    assert!(refuse("verify x --frobnicate").contains("--frobnicate"));
}

/// The golden files of the repository.
#[test]
fn repository_cases_pass() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    if !golden.is_dir() {
        skip("the repository has no golden files");
        return;
    }
    let output = natten(&["verify", golden.to_str().unwrap()]);
    assert!(output.status.success(), "{}", text(&output.stdout));
}
