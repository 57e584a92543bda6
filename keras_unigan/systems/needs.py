"""What a system needs: label maps, pairing, and the modality of an image at prediction."""

_ALL = "of all training cases; others are not looked at"
_SOME = "of some training cases; images without them teach too"
_UNPAIRED = "none: each subject may have one modality"
_TWO = "none; training cases of two or more modalities"
_OF_PAIR = "none; training cases of both modalities of game.pair"
_FREE = "not used"
_ASKED = "asked for; without it the parts of all modalities are averaged"
_FIRST = "tells images of the first modality of game.pair, which are translated before"

LABELS = {"labels": _ALL, "pairing": _UNPAIRED, "modality": _FREE}
TOLD = {"labels": _ALL, "pairing": _UNPAIRED, "modality": _ASKED}
TOLD_PAIRED = {**TOLD, "pairing": f"{_UNPAIRED} (registered in the paper; here the others are 0)"}
TOLD_SOME = {**TOLD, "labels": _SOME}
SOME = {**LABELS, "labels": _SOME}
GAMES = {"labels": _SOME, "pairing": _TWO, "modality": _FREE}
GAMES_TOLD = {**GAMES, "modality": "used where it is told"}
TRANSLATED = {"labels": "none", "pairing": _TWO, "modality": "asked for; makes no label maps"}
PAIR = {**TRANSLATED, "pairing": _OF_PAIR}
ONE_LABELLED = {
    "labels": "of the first modality of game.pair; those of others are not looked at",
    "pairing": _OF_PAIR,
    "modality": _FIRST,
}
PAIRS_MADE = {**LABELS, "modality": "of what is made; reads no scans"}
