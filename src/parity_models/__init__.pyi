from parity_models.codes import CodeSpec as CodeSpec
from parity_models.errors import ParityModelsError as ParityModelsError
from parity_models.errors import UserError as UserError
from parity_models.evaluation import accuracy_table as accuracy_table
from parity_models.evaluation import evaluate as evaluate
from parity_models.load import LoadSpec as LoadSpec
from parity_models.load import offer_load as offer_load
from parity_models.models.bundle import Bundle as Bundle
from parity_models.models.bundle import open_bundle as open_bundle
from parity_models.scheduling import Policy as Policy
from parity_models.scheduling import SchedulerConfig as SchedulerConfig
from parity_models.serving.server import ServeOptions as ServeOptions
from parity_models.serving.server import Server as Server
from parity_models.serving.server import serve as serve
from parity_models.simulation import Simulation as Simulation
from parity_models.simulation import simulate as simulate
from parity_models.training import Settings as Settings
from parity_models.training import train_backup as train_backup
from parity_models.training import train_parity as train_parity

__version__: str
