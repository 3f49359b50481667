# make demo   the whole pipeline on the built-in cohort, ending in demo/report.html
# make test   the whole test suite        make lint   ruff, lint and format
# make soak   the faults, many times over: 50 times kill -9, of tiles and both trainings; 200 visitors of the quiz
# Each sets up .venv by itself. PYTHON=python3.12 make demo picks another interpreter for it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PY := .venv/bin/python
SEED := 99

.PHONY: demo test soak lint setup clean-demo
.DELETE_ON_ERROR:

# Two stages at a time with a thread each: networks of this size gain little from a second thread.
demo: .venv/.done
	@$(MAKE) --no-print-directory -j2 demo/.done/report
	@printf '\nThe demo is finished: %s\n' "$$PWD/demo/report.html"
	@printf 'Can you tell its tiles from real ones? %s\n' "$(PY) serve_quiz.py serve --quiz demo/quiz"

test: .venv/.done-dev
	$(PY) -m pytest -n 2 --dist loadfile

soak: .venv/.done-dev
	$(PY) -m pytest -m soak

lint: .venv/.done-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

setup: .venv/.done

clean-demo:
	rm -rf demo

# --- set-up: torch and torchvision from the registry, exact versions from constraints.txt ---

.venv/.done: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; PYTHON=python3.12 make ..."'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

.venv/.done-dev: .venv/.done requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps torchgan
	touch $@

# --- the demo: one stage per stamp in demo/.done; a finished stage is not run again, an interrupted one goes on ---

demo/.done/%: export OMP_NUM_THREADS := 1
demo/.done/%: export RNAGAN_FEATURE_CACHE := demo/features
GANS := rna-gan_lung rna-gan_brain gan_lung gan_brain
tissue = $(lastword $(subst _, ,$(1)))
loss = $(if $(filter rna-%,$(1)),rpganvae,rpgan --num_epochs 3)
begin = @mkdir -p demo/.done && date +%s > demo/.done/$(notdir $@).start && printf '\n=== %s\n' '$(1)'
end = @printf '    (%s s)\n' "$$(( $$(date +%s) - $$(cat demo/.done/$(notdir $@).start) ))" && touch $@

demo/.done/cohort: | .venv/.done
	$(call begin,Demo cohort: slides and expression of 130 donors)
	$(PY) prepare_data.py demo --out demo --seed $(SEED)
	$(end)

demo/.done/table_%: demo/.done/cohort
	$(call begin,Expression table of $*)
	$(PY) prepare_data.py expression --input demo/rna/gene_tpm.gct.gz --attributes demo/rna/SampleAttributesDS.txt --phenotypes demo/rna/SubjectPhenotypesDS.txt --tissue "$(if $(filter lung,$*),Lung,Brain - Cortex)" --genes demo/rna/protein_coding_genes.csv --slides demo/slides/$* --out demo/data/$*.csv
	$(end)

# One brain slide is planted to fail: status 3 and one line in the report, or the demo stops.
demo/.done/tiles_%: demo/.done/cohort
	$(call begin,Tiles of $*)
	status=0; $(PY) prepare_data.py tiles --slides demo/slides/$* --out demo/tiles/$* --mpp 0.5 --tile_size 128 --max_tiles 40 --mpp_table demo/mpp_table.csv || status=$$?; \
	planted=$(if $(filter brain,$*),1,0); failed=$$(grep -c ',failed,' demo/tiles/$*/report.csv || true); \
	echo "    slides that failed: $$failed, planted to fail: $$planted"; \
	test $$failed -eq $$planted && test $$status -eq $$(( 3 * planted ))
	$(end)

demo/.done/vae: demo/.done/table_lung demo/.done/table_brain
	$(call begin,beta-VAE of expression)
	$(PY) betaVAE_training.py --seed $(SEED) --config demo/configs/betavae_tissues.json
	$(end)

demo/.done/shifts: demo/.done/vae
	$(call begin,Tissue and sex shift in the latent space)
	$(PY) betaVAE_interpolation.py --seed $(SEED) --config demo/configs/betavae_tissues.json --type tissue
	$(PY) betaVAE_interpolation.py --seed $(SEED) --config demo/configs/betavae_tissues.json --type sex
	$(end)

demo/.done/samples: demo/.done/vae
	$(call begin,Synthetic expression profiles)
	$(PY) betaVAE_sample.py --seed $(SEED) --config demo/configs/betavae_tissues.json
	$(end)

$(GANS:%=demo/.done/train_%): demo/.done/train_%: demo/.done/vae demo/.done/tiles_lung demo/.done/tiles_brain
	$(call begin,Training $*)
	$(PY) histopathology_gan.py --seed $(SEED) --config demo/configs/gan_run_$(call tissue,$*).json --model_dir demo/checkpoints/$* --image_dir demo/samples/$* --gan_type residual --loss_type $(call loss,$*)
	$(end)

trained := $(GANS:%=demo/.done/train_%)
patient_lung := GTEX-15RJ7-0625.svs
patient_brain := GTEX-1C6WA-3025.svs

demo/.done/generate_%: $(trained)
	$(call begin,Tiles of $* for a patient; for a profile of another study; for all held-out donors)
	$(PY) generate_tissue_images.py --checkpoint demo/checkpoints/rna-gan_$*.model --checkpoint2 demo/checkpoints/gan_$*.model --config demo/configs/gan_run_$*.json --sample_size 64 --vae --patient1 $(patient_$*) --out demo/generated/rna-gan_$*/$(basename $(patient_$*))
	$(PY) generate_tissue_images.py --checkpoint demo/checkpoints/rna-gan_$*.model --config demo/configs/gan_run_$*.json --sample_size 64 --vae --rna_data demo/geo/GSE120795_$*_proteincoding.csv --random_patient --out demo/generated/rna-gan_$*/GSE120795
	$(PY) generate_tissue_images.py --checkpoint demo/checkpoints/rna-gan_$*.model --config demo/configs/gan_run_$*.json --sample_size 300 --vae --out demo/generated/rna-gan_$*/held_out
	$(end)

demo/.done/conditioning_%: demo/.done/shifts $(trained)
	$(call begin,Do the tiles of $* match the patient?)
	$(PY) evaluate_conditioning.py --checkpoint demo/checkpoints/rna-gan_$*.model --config demo/configs/gan_run_$*.json --shift demo/checkpoints/betavae_tissues/shifts/shift_$(if $(filter lung,$*),lung_to_brain_cortex,brain_cortex_to_lung).npz --seed $(SEED) --out demo/conditioning/$*
	$(end)

demo/.done/fid: $(trained)
	$(call begin,Distances: real; GAN; RNA-GAN; lung and brain)
	$(PY) fid.py --seed $(SEED) --split test --sample_size 200 --iterations 2 --extractor_side tiles --out demo/fid/matrix --matrix $(foreach t,lung brain,real_$(t)=real:demo/configs/gan_run_$(t).json gan_$(t)=demo/checkpoints/gan_$(t) rna-gan_$(t)=demo/checkpoints/rna-gan_$(t))
	$(end)

toy := --patch_data_path demo/images_form --seed $(SEED) --num_epochs 10
demo/.done/classifier: demo/.done/generate_lung demo/.done/generate_brain
	$(call begin,Classifier: real; synthetic to real; real to synthetic; shuffled labels)
	$(PY) prepare_data.py toy --real demo/tiles/lung demo/tiles/brain --generated demo/generated/rna-gan_lung/held_out demo/generated/rna-gan_brain/held_out --out demo/images_form --per_class 300 --split test
	$(PY) wsi_model.py $(toy) --csv_path real_toy_example.csv --out demo/classifier/real
	$(PY) wsi_model.py $(toy) --train_csv rna-gan_toy_example.csv --test_csv real_toy_example.csv --out demo/classifier/synthetic_to_real
	$(PY) wsi_model.py $(toy) --train_csv real_toy_example.csv --test_csv rna-gan_toy_example.csv --out demo/classifier/real_to_synthetic
	$(PY) wsi_model.py $(toy) --csv_path real_toy_example.csv --shuffle_labels --out demo/classifier/real_shuffled
	$(end)

demo/.done/quiz: demo/.done/generate_lung demo/.done/generate_brain
	$(call begin,Quiz: which tiles are real?)
	$(PY) serve_quiz.py build --seed $(SEED) --split test --out demo/quiz --real demo/tiles/lung demo/tiles/brain --synthetic $(foreach t,lung brain,demo/generated/rna-gan_$(t)/held_out demo/generated/rna-gan_$(t)/$(basename $(patient_$(t)))/second)
	$(end)

demo/.done/report: demo/.done/conditioning_lung demo/.done/conditioning_brain demo/.done/shifts demo/.done/samples demo/.done/generate_lung demo/.done/generate_brain demo/.done/fid demo/.done/classifier demo/.done/quiz
	$(call begin,Report)
	$(PY) paper_figures.py report --demo demo --seed $(SEED)
	$(end)
