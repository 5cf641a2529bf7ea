"""Doing a unit of work: its outputs stand, and then its records are in the ledger, when this returns.

A unit done twice leaves the same bytes. Must not know who asks.
"""

from __future__ import annotations

import time

from raytrain.errors import DataError
from raytrain.imagery.scene_files import SceneSource
from raytrain.scoring import ledger
from raytrain.scoring.chips import score_chips
from raytrain.scoring.scenes import assemble, missing_blocks, opened, remove_blocks, score_block, score_whole
from raytrain.scoring.sources import CHANGED, SourceChanged, scene_has_changed
from raytrain.scoring.tiles import score_tiles
from raytrain.scoring.units import Answer, Problem, Unit, blocks_of, shown_source
from raytrain.scoring.work import Work, remove_outputs


def perform(unit: Unit, work: Work) -> Answer:
    """Do `unit`. What is wrong with the data of an item is a problem of the answer, and the item has no outputs then.

    An item whose source is no more what was listed is `changed`, whatever seems wrong with it, and has no blocks then.
    Any other failure (a store, memory) is raised, and nothing is entered.
    """
    start = time.monotonic()
    if unit.kind == "chips":
        answer = score_chips(unit.chips, work)
    elif unit.kind == "tiles":
        answer = score_tiles(unit, work)
    else:
        assert unit.scene is not None, "only units of chips and tiles have no scene"
        try:
            answer = _PERFORM[unit.kind](unit, unit.scene, work)
        except DataError as error:
            changed = scene_has_changed(unit.scene)
            answer = _changed(unit.scene, work) if changed else Answer(problems=(_problem(unit.scene, error),))
        except SourceChanged:
            answer = _changed(unit.scene, work)
    for problem in answer.problems:
        remove_outputs(work.destination, problem.item_id, work.layers)
    if answer.records:
        ledger.enter(work.destination, answer.records)
        if unit.kind == "assembly" and unit.scene is not None:
            remove_blocks(unit.scene, work.destination)  # not before: who dies here has lost no work
    return answer.model_copy(
        update={
            "entry": ledger.entry_name(record.item_id for record in answer.records) if answer.records else None,
            "seconds": time.monotonic() - start,
            "network_s": work.nets.network_s,
        }
    )


def _changed(scene: SceneSource, work: Work) -> Answer:
    """Remove the blocks of a scene whose source is no more what they were made of."""
    remove_blocks(scene, work.destination)
    return Answer(changed=(Problem(item_id=scene.scene_id, source_uri=shown_source(scene), found=CHANGED),))


def _problem(scene: SceneSource, error: DataError) -> Problem:
    """Return what is wrong with a scene; which of its files, where the error is about one."""
    found = error.found if error.subject == scene.scene_id else str(error)
    return Problem(item_id=scene.scene_id, source_uri=shown_source(scene), found=found)


def _scene(unit: Unit, scene: SceneSource, work: Work) -> Answer:
    with opened(scene, work) as source:
        blocks = blocks_of(source.height, source.width, work.scoring.settings.block_px)
        if len(blocks) > 1:
            return Answer(blocks=blocks, missing=missing_blocks(source, blocks, work))
        record = score_whole(source, work)
    return Answer(records=(record,), pixels=record.height * record.width)


def _block(unit: Unit, scene: SceneSource, work: Work) -> Answer:
    (block,) = unit.regions
    score_block(scene, block, work)
    return Answer(pixels=block.height * block.width)


def _assembly(unit: Unit, scene: SceneSource, work: Work) -> Answer:
    with opened(scene, work) as source:
        # Another worker, since given up, may have put the scene together meanwhile and removed blocks.
        if missing := missing_blocks(source, unit.regions, work):
            return Answer(blocks=unit.regions, missing=missing)
        return Answer(records=(assemble(source, unit.regions, work),))


_PERFORM = {"scene": _scene, "block": _block, "assembly": _assembly}
