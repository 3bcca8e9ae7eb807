//! Module-level PTX: headers, variables, entries and their parameters.

use std::collections::HashMap;

use super::ast::{EntryAst, GlobalDecl, ModuleAst, ParamDecl, Symbol};
use super::body::Body;
use super::cursor::{Cursor, Parsed};
use crate::fault::ParseProblem;
use crate::inst::Ty;

/// Variables of the module and the names that lead to them.
#[derive(Default)]
pub(super) struct Globals {
    pub(super) names: HashMap<String, Symbol>,
    /// Bytes of the `.shared` variables declared so far outside of entries.
    shared_bytes: u32,
    /// Largest alignment of an `extern .shared` array; all of them start where the static part ends.
    dynamic_align: u32,
}

/// Marks the offset of dynamic shared memory until all static variables are known.
pub(crate) const DYNAMIC_SHARED: u32 = u32::MAX;

pub(crate) fn parse_module(text: &str) -> Parsed<ModuleAst> {
    let mut cursor = Cursor::new(text);
    let mut module = ModuleAst::default();
    let mut globals = Globals::default();
    while !cursor.at_end() {
        let start = cursor.pos();
        match cursor.directive() {
            ".version" => {
                let word = cursor.dotted();
                let (major, minor) = word.split_once('.').unwrap_or((word, "0"));
                let number = |s: &str| s.parse().map_err(|_| cursor.syntax("a version number"));
                module.version = (number(major)?, number(minor)?);
            }
            ".target" => {
                module.target = cursor.name().to_owned();
                while cursor.eat(b',') {
                    cursor.name();
                }
            }
            ".address_size" => {
                if cursor.count()? != 64 {
                    return Err(cursor.syntax("64-bit addresses"));
                }
            }
            ".file" => file(&mut cursor, &mut module)?,
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => {
                let entry = entry(&mut cursor, &mut globals)?;
                module.entries.push(entry);
            }
            ".func" => function(&mut cursor)?,
            ".shared" => shared(&mut cursor, &mut globals)?,
            ".global" | ".const" => global(&mut cursor, &mut module, &mut globals)?,
            ".section" => {
                cursor.dotted();
                cursor.directive();
                cursor.skip_braces()?;
            }
            ".pragma" => cursor.skip_statement(),
            ".loc" => cursor.skip_line(),
            other => {
                let reason = format!("module directive `{other}`");
                cursor.skip_line();
                return Err(cursor.error(cursor.since(start), ParseProblem::Unsupported { reason }));
            }
        }
    }
    Ok(module)
}

fn file(cursor: &mut Cursor<'_>, module: &mut ModuleAst) -> Parsed<()> {
    let number = cursor.count()?;
    let name = cursor.string()?.to_owned();
    module.files.push((number, name));
    while cursor.eat(b',') {
        cursor.integer()?;
    }
    Ok(())
}

/// Device functions are skipped; a call to one is the error.
fn function(cursor: &mut Cursor<'_>) -> Parsed<()> {
    loop {
        match cursor.peek() {
            None => return Err(cursor.syntax("a function body")),
            Some(b'{') => return cursor.skip_braces(),
            Some(b';') => {
                cursor.eat(b';');
                return Ok(());
            }
            Some(b'.') => {
                cursor.directive();
            }
            Some(_) => {
                if cursor.name().is_empty() {
                    cursor.advance_char();
                }
            }
        }
    }
}

fn shared(cursor: &mut Cursor<'_>, globals: &mut Globals) -> Parsed<()> {
    let Variable { name, bytes, align, open, .. } = variable(cursor)?;
    cursor.expect(b';', "`;`")?;
    let symbol = if open {
        globals.dynamic_align = globals.dynamic_align.max(align);
        Symbol::Shared(DYNAMIC_SHARED)
    } else {
        Symbol::Shared(place(cursor, &mut globals.shared_bytes, bytes, align)?)
    };
    globals.names.insert(name, symbol);
    Ok(())
}

fn global(cursor: &mut Cursor<'_>, module: &mut ModuleAst, globals: &mut Globals) -> Parsed<()> {
    let Variable { name, bytes, element_bytes, .. } = variable(cursor)?;
    if bytes > u64::from(MOST_BYTES) {
        return Err(cursor.syntax(TOO_LARGE));
    }
    let mut initial = Vec::new();
    if cursor.eat(b'=') {
        let braces = cursor.eat(b'{');
        loop {
            let word_start = cursor.pos();
            let bits = match cursor.peek() {
                Some(b'-') => cursor.integer()? as u64,
                _ => {
                    let word = cursor.name();
                    let float = |p: &str| word.strip_prefix(p).and_then(|h| u64::from_str_radix(h, 16).ok());
                    let value = float("0f")
                        .or_else(|| float("0F"))
                        .or_else(|| float("0d"))
                        .or_else(|| float("0D"))
                        .or_else(|| super::cursor::parse_integer(word).map(|v| v as u64));
                    value.ok_or_else(|| {
                        let reason = "initialiser that is not a number".to_owned();
                        cursor.error(cursor.since(word_start), ParseProblem::Unsupported { reason })
                    })?
                }
            };
            initial.extend_from_slice(&bits.to_le_bytes()[..(element_bytes as usize).min(8)]);
            if !braces || cursor.eat(b'}') {
                break;
            }
            cursor.expect(b',', "`,` or `}`")?;
        }
    }
    cursor.expect(b';', "`;`")?;
    globals.names.insert(name, Symbol::Global(module.globals.len() as u32));
    module.globals.push(GlobalDecl { bytes, initial });
    Ok(())
}

/// Bytes that the variables of a kernel may have in each memory: more than any block or thread has, and few enough that no
/// address overflows.
const MOST_BYTES: u32 = 1 << 30;
const TOO_LARGE: &str = "variables of 1 GiB at most";

/// Where a variable of so many bytes goes that follows `end` bytes of others; they then end behind it.
pub(super) fn place(cursor: &Cursor<'_>, end: &mut u32, bytes: u64, align: u32) -> Parsed<u32> {
    let start = end.checked_next_multiple_of(align);
    let behind = |start: u32| u32::try_from(bytes).ok()?.checked_add(start).filter(|&end| end <= MOST_BYTES);
    match start.and_then(|start| Some((start, behind(start)?))) {
        Some((start, behind)) => {
            *end = behind;
            Ok(start)
        }
        None => Err(cursor.syntax(TOO_LARGE)),
    }
}

/// A variable's declaration.
pub(super) struct Variable {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) align: u32,
    pub(super) element_bytes: u32,
    /// An extent is left open: dynamic shared memory.
    pub(super) open: bool,
}

/// `[.align n] [.v4] .type name[d0][d1]`
pub(super) fn variable(cursor: &mut Cursor<'_>) -> Parsed<Variable> {
    let mut align = None;
    let mut lanes = 1;
    let ty = loop {
        match cursor.directive() {
            ".align" => {
                let value = cursor.count()?;
                if !value.is_power_of_two() {
                    return Err(cursor.syntax("a power of two"));
                }
                align = Some(value);
            }
            ".v2" => lanes = 2,
            ".v4" => lanes = 4,
            other => match parse_type(other.strip_prefix('.').unwrap_or("")) {
                Some(ty) => break ty,
                None if other == ".attribute" => return Err(cursor.syntax("no .attribute")),
                None => return Err(cursor.syntax("a type")),
            },
        }
    };
    let name = cursor.name().to_owned();
    let mut bytes = u64::from(ty.bytes() * lanes);
    let mut open = false;
    while cursor.eat(b'[') {
        if cursor.eat(b']') {
            open = true;
            continue;
        }
        bytes = bytes.saturating_mul(u64::from(cursor.count()?));
        cursor.expect(b']', "`]`")?;
    }
    let element_bytes = ty.bytes();
    Ok(Variable { name, bytes, align: align.unwrap_or(element_bytes * lanes), element_bytes, open })
}

fn entry(cursor: &mut Cursor<'_>, globals: &mut Globals) -> Parsed<EntryAst> {
    let name = cursor.name().to_owned();
    let mut entry = EntryAst { name, shared_bytes: globals.shared_bytes, ..EntryAst::default() };
    if cursor.eat(b'(') && !cursor.eat(b')') {
        let mut offset = 0u32;
        loop {
            entry.params.push(param(cursor, &mut offset)?);
            if cursor.eat(b')') {
                break;
            }
            cursor.expect(b',', "`,` or `)`")?;
        }
    }
    while cursor.peek() == Some(b'.') {
        match cursor.directive() {
            ".maxntid" => entry.maxntid = Some(triple(cursor)?),
            ".reqntid" => entry.reqntid = Some(triple(cursor)?),
            ".minnctapersm" => entry.minnctapersm = Some(cursor.count()?),
            ".maxnreg" | ".maxnctapersm" | ".maxclusterrank" => {
                cursor.count()?;
            }
            ".reqnctapercluster" => {
                triple(cursor)?;
            }
            ".explicitcluster" | ".noreturn" | ".blocksareclusters" => {}
            ".pragma" => cursor.skip_statement(),
            _ => return Err(cursor.syntax("a performance directive or the body")),
        }
    }
    let mut entry = Body::new(cursor, globals, entry).parse()?;
    entry.dynamic_shared = entry.shared_bytes.next_multiple_of(globals.dynamic_align.max(16));
    Ok(entry)
}

/// `.param [.align n] .type [.ptr [.space] [.align n]] name[bytes]`
fn param(cursor: &mut Cursor<'_>, end: &mut u32) -> Parsed<ParamDecl> {
    if cursor.directive() != ".param" {
        return Err(cursor.syntax("`.param`"));
    }
    let mut align = None;
    let mut ty = None;
    let mut pointer = false;
    while cursor.peek() == Some(b'.') {
        match cursor.directive() {
            ".align" => {
                let value = cursor.count()?;
                if !value.is_power_of_two() {
                    return Err(cursor.syntax("a power of two"));
                }
                // The alignment of what a pointer points at says nothing about the parameter.
                if !pointer {
                    align = Some(value);
                }
            }
            ".ptr" => pointer = true,
            ".global" | ".const" | ".local" | ".shared" => {}
            other => ty = Some(parse_type(&other[1..]).ok_or_else(|| cursor.syntax("a parameter type"))?),
        }
    }
    let ty = ty.ok_or_else(|| cursor.syntax("a parameter type"))?;
    let name = cursor.name().to_owned();
    let mut bytes = ty.bytes();
    if cursor.eat(b'[') {
        bytes = bytes.saturating_mul(cursor.count()?);
        cursor.expect(b']', "`]`")?;
    }
    let align = align.unwrap_or(ty.bytes());
    let offset = place(cursor, end, bytes.into(), align)?;
    Ok(ParamDecl { name, bytes, align, offset })
}

fn triple(cursor: &mut Cursor<'_>) -> Parsed<[u32; 3]> {
    let mut extents = [1; 3];
    for (i, extent) in extents.iter_mut().enumerate() {
        if i > 0 && !cursor.eat(b',') {
            break;
        }
        *extent = cursor.count()?;
    }
    Ok(extents)
}

/// A fundamental type by its PTX name, without the dot.
pub(crate) fn parse_type(name: &str) -> Option<Ty> {
    Some(match name {
        "b8" => Ty::B8,
        "b16" => Ty::B16,
        "b32" => Ty::B32,
        "b64" => Ty::B64,
        "b128" => Ty::B128,
        "u8" => Ty::U8,
        "u16" => Ty::U16,
        "u32" => Ty::U32,
        "u64" => Ty::U64,
        "s8" => Ty::S8,
        "s16" => Ty::S16,
        "s32" => Ty::S32,
        "s64" => Ty::S64,
        "f16" => Ty::F16,
        "f16x2" => Ty::F16x2,
        "bf16" => Ty::Bf16,
        "bf16x2" => Ty::Bf16x2,
        "f32" => Ty::F32,
        "f64" => Ty::F64,
        "tf32" => Ty::Tf32,
        "pred" => Ty::Pred,
        _ => return None,
    })
}
